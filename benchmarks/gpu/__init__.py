"""The encoder on a GPU: whether its vectors are right, how fast it is, and where time is lost.

Needs a card, torch, transformers, sentence-transformers and this checkout: no Ray, no network, no weights. Models have
random weights of well-known sizes.
"""
