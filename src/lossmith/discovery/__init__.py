"""Find a loss that nobody has written down, and believe it: candidates compiled, checked, raced and confirmed."""
