"""Passes on the KV cache: how much of it is kept, and how."""
