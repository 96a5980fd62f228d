"""Kernels for GPUs: written as Triton text, compiled ahead of time for a named device, launched without a compiler.

How a template is added:

    templates/<name>.py   a function that writes a body with `Writer` and returns `Call(Kernel(...), bindings)`
    rules/<name>.py       `rule(body, choices)`: `Lowered`, None where the region is not its kind, or raises `Refusal`
    rules/__init__.py     one entry in `RULES`

A template sees the body of a region (`irx.backends.regions.linear_region.parse`, `attention_region.parse`), the device
file in `choices.device` and its knobs in `choices.schedule(template, bucket, defaults)`. It never imports triton: a
kernel is text and data. `compiling.try_kernels` makes binaries of kernels on any machine, `interpret.run` runs one on
the CPU, and `tests/backends/triton/lowered_run.py` runs what a rule makes of a region against the oracle.
"""
