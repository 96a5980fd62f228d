"""How `skip-layers` chooses, one file per policy: each says which of `count` blocks are left out."""
