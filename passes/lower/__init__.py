"""LOWER: from a rewritten program to one that a backend takes as it is."""
