"""Readers of data sets: the bundled emoji, image folders and shards, the ImageNet family, ADE20K, image-text pairs."""
