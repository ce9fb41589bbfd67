"""Tensors: GGUF files in, logits out."""
