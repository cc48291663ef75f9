"""Metric objectives: `proxy` and `angular` (learnable class vectors), `contrastive` (softmax over rows), `pairwise`."""
