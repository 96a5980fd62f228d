"""IRX: a compiler for transformer inference."""

__version__ = "0.1.0"
