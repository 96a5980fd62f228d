"""Passes that change attention itself: layers that share it, and the correction of what that costs. All are lossy."""
