"""Kernels for NVIDIA's GPUs through TVM: regions as blocks of TVMScript, TVM's schedules, CUDA text, NVRTC, a binary.

    rules/             which regions: products of a single row (`linear`), fused regions (`regions`)
    script.py          blocks, and the text of an element of any value (`moves`, `reductions`, `elementwise`, `codes`)
    scheduling.py      blocks to CUDA text of one function, by the first of TVM's schedules that makes one
    signature.py       the function as the driver launches it
    nvrtc.py           CUDA text to a binary

A kernel says what is computed and nothing about threads, so its numbers are checked on a CPU: the same text, compiled
for LLVM (`tests/backends/tvm_cuda/on_cpu.py`).
"""
