"""Metric objectives: `proxy` (learnable class vectors), `contrastive` (a softmax over rows), `pairwise` (margins)."""
