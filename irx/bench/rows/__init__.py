"""The rows of `irx bench`, one file per family: what is measured, what it is compared with, and what is wanted."""
