"""Losses with a miner, and batches of which a miner leaves something of most anchors and nothing of others."""

import torch
from torch import Tensor

from library import DIM, build, scores_for

ON_ROWS = ["circle", "multi_similarity", "nca", "nt_xent", "supcon", "triplet_margin"]
TAKEN = [*ON_ROWS, "contrastive", "lifted_structure"]
WANG = "miner='multi_similarity', miner_epsilon=0.2"
SETTINGS = {"triplet_margin": "margin=0.4, "}
MINED = [f"{name}({SETTINGS.get(name, '')}{miner})" for name in TAKEN for miner in ("miner='hard'", WANG)]
MINED.append("triplet_margin(margin=0.4, miner='semi_hard')")
IN_CHUNKS = [text for text in MINED if text.partition("(")[0] in ON_ROWS]
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, -100, 1, 2, 7])
"""One row is ignored, one is alone in its class."""
COUNTED = int((LABELS != -100).sum())


def spread(count: int = len(LABELS), seed: int = 0) -> Tensor:
    """Random rows: something is left of every anchor that has a positive."""
    return scores_for(build("supcon"), count, seed=seed)


def clustered(dtype: torch.dtype = torch.float64) -> Tensor:
    """Class 1 is far from all others and tight, so that Wang's miner leaves nothing of it."""
    rows = spread().detach()
    rows[LABELS == 1] = 0.01 * rows[LABELS == 1] - torch.eye(DIM, dtype=rows.dtype)[2] * 4
    rows[LABELS != 1, 2] = rows[LABELS != 1, 2].abs() + 0.5
    return rows.to(dtype).requires_grad_()
