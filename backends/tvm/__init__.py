"""Kernels for CPUs: written as TIR text, compiled by TVM, loaded without a linker, run by a native walker."""
