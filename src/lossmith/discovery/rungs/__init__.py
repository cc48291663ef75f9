"""Where candidates are measured: each rung trains something, dearer and nearer to the target than the one below."""
