"""Generated kernels: any region of elementwise, shape, lookup and reduction ops, element by element on demand."""
