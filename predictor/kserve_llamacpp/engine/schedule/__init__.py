"""Who computes what in the next step, and who waits."""
