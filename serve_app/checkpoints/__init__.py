"""Locates a model's files and reads their metadata. Never reads weights."""
