"""What a user could run instead of IRX: one file per library, each in the strongest form its own guides advise.

A baseline is a step: a callable that does the same work again in every call and gives what it computed, so that its
result can be compared with IRX's before anything is timed. A library that is not installed raises `Absent`.
"""
