"""The parts of raise-attention: the spelled-out pattern, additive masks, repeated KV heads, the numeric check."""
