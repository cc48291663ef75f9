"""Region objectives: `lovasz` (sorted errors) and `overlap` (sums over the tokens of each present class)."""
