"""Passes that change how weights and activations are stored and rounded: all lossy, and only on request."""
