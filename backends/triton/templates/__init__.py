"""Kernel templates: functions that write the body of a kernel for given sizes, formats, features and knobs."""
