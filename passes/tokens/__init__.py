"""Passes that compute with fewer tokens than were given: all lossy, and only on request."""
