"""Simple Diffusion Model: small, readable parts for diffusion on a laptop or a GPU."""

__version__ = "0.2.0"
