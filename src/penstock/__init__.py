"""Penstock: a PyTorch-native engine that trains large language models at full pressure."""

__version__ = "0.1.0"
