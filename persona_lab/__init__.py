"""Persona Lab: build characters out of small open language models, and measure how well it worked."""

__version__ = "0.1.0"
