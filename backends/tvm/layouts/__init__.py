"""How weights lie in memory for kernels: one file per family of layouts."""
