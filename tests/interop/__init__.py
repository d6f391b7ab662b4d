"""Our formats, checked with tools we did not write."""
