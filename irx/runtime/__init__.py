"""What runs a compiled program: executables, sessions, caches, generation, artifacts. There is no compiler in here."""
