"""The parts of insert-cache: roles of inputs, attention sites, positions, biases, the encoder's share, the check."""
