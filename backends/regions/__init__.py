"""What backends that make kernels share: regions and what is in them, calls of kernels, buffers, constants."""
