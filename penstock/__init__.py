"""Penstock: the streaming server for language models."""

__version__ = "0.1.0"
