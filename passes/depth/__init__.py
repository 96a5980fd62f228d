"""Passes of the stage DEPTH: which layers run. `removal` and `states` take units out, `policies` choose them."""
