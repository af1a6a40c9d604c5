"""Texts and token ids to the ids that a model reads, without torch."""
