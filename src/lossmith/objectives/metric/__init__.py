"""Metric objectives: `proxy` (learnable class vectors), `contrastive` (softmax over the batch), `pairwise` (margins)."""
