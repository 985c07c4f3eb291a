"""Recipes: one Python file each, opening with its command, hardware, time and the figures to expect."""
