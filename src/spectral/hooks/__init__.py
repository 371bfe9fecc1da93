"""Tensors at sites during an ordinary forward pass."""
