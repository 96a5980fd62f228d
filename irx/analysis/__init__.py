"""What can be known about a program: its cost, its structure, and what it computes."""
