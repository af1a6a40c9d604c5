"""Locates a model's files and reads the model's metadata from them. This package never reads weights."""
