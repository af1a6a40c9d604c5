"""Turns texts and token ids into the ids that a model reads. This package does not import torch."""
