"""Benchmark the encoder on a GPU: correctness of its vectors, speed, and a profile of where time is lost.

It needs a GPU, torch, transformers, sentence-transformers and this checkout, but neither Ray nor a network nor
model weights. The models have well-known sizes and random weights.
"""
