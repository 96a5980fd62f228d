"""Passes of the stage FUSE: which nodes become one node, so that a backend makes one kernel of them.

First a selection of tokens moves up to where tokens mix (`trim-rows`), and linears of one input are merged
(`merge-linears`). Then regions grow around what does the work: every product with its packed weights
(`fuse-dequantize`), gate and up with their activation (`fuse-gated`), what follows a product element by element
(`fuse-epilogue`, `fuse-residual`), the norm before it (`fuse-norm`), what stands around attention (`fuse-attention`)
and table lookups (`fuse-embedding`). What is left over is grouped by the bytes that this saves (`fuse-regions`).

`nodes` answers questions about nodes that may be regions already, `bookkeeping` makes the regions and reports them,
`projections` derives the weights of merged and split products, `clusters` finds the groups of `fuse-regions`.
`fold-norm-weight` is not part of the default pipeline; its docstring says why.
"""
