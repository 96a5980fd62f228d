"""Generated kernels: any region of elementwise, shape, lookup and reduction ops, block by block on demand."""
