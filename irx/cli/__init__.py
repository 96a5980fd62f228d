"""The irx command."""
