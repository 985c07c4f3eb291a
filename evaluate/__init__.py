"""Measuring a model: each evaluator yields numbers, each command prints them and writes ``results.json``."""
