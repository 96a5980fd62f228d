"""Rules turn regions into kernels: one file per kind of region, tried in the order of `RULES`."""
