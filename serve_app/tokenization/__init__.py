"""Turns texts and token ids into the ids that a model reads. Does not import torch."""
