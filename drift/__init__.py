"""Drift: windows of what a model saw and said, compared with what it was made from."""
