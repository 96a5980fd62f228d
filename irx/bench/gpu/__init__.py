"""`irx bench --target cuda`: shipped shapes on this machine's GPU, against PyTorch's compiler on the same GPU."""
