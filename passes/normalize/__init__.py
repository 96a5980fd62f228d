"""Passes that clean a captured program and raise what models spell in many ways to few semantic ops."""
