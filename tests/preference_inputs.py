"""Pairs and settings on which the tests of the preference objectives run."""

from typing import Any

import torch
from torch import Tensor

from lossmith.objectives import get_record
from oracles_preference import Pair

SHIFT = 0.37
"""Reward shift of the tests; what `bco_pair` must not read without `running_delta`."""

# Name -> hyper-parameters to try beside the defaults. VARIANTS: each pair alone; COUPLED: over the batch.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "dpo": [{"beta": 0.05}, {"beta": 0.7}],
    "cdpo": [{"beta": 0.3, "label_smoothing": 0.23}, {"label_smoothing": 0.0}],
    "robust_dpo": [{"beta": 0.3, "label_smoothing": 0.23}, {"label_smoothing": 0.0}],
    "hinge": [{"beta": 0.03}, {"beta": 0.6}],
    "ipo": [{"beta": 0.4}, {"beta": 0.3, "average": True}],
    "exo_pair": [{"beta": 0.2, "label_smoothing": 0.17}],
    "dpop": [{"beta": 0.02, "coefficient": 3.5}, {"coefficient": 0.0}],
    "dpo_length_normalized": [{"beta": 4.0}],
    "nca_pair": [{"beta": 0.04}],
    "bco_pair": [{"beta": 0.04}, {"beta": 0.2, "running_delta": True}],
    "sppo_hard": [{"beta": 0.04}],
    "apo_zero": [{"beta": 0.04}],
    "apo_down": [{"beta": 0.04}],
    "simpo": [{"beta": 1.3, "gamma": 0.4}, {"gamma": 0.0}],
    "orpo": [{"coefficient": 1.7}, {"coefficient": 0.0}],
    "cpo": [{"beta": 0.3, "nll_coefficient": 0.6}, {"nll_coefficient": 0.0}],
}
COUPLED: dict[str, list[dict[str, Any]]] = {
    "aot": [{"beta": 0.3, "label_smoothing": 0.23}],
    "aot_unpaired": [{"beta": 0.3, "label_smoothing": 0.23}],
    "kto_pair": [{"beta": 0.3}, {"beta": 0.3, "detach_kl": False}],
}


def make_pairs(count: int = 9, seed: int = 0) -> list[Pair]:
    """Uneven pairs: some won, some lost, some chosen completions below their reference, no two lengths alike."""
    generator = torch.Generator().manual_seed(seed)
    policy = -5 - 55 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    reference = policy + 9 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    lengths = torch.randint(3, 40, (count, 2), generator=generator).double()
    return [Pair(*map(float, row)) for row in torch.cat([policy, reference, lengths], 1)]


def statistics_of(name: str, pairs: list[Pair], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    columns = {
        "chosen_logps": [p.chosen for p in pairs],
        "rejected_logps": [p.rejected for p in pairs],
        "ref_chosen_logps": [p.ref_chosen for p in pairs],
        "ref_rejected_logps": [p.ref_rejected for p in pairs],
        "chosen_lengths": [p.chosen_length for p in pairs],
        "rejected_lengths": [p.rejected_length for p in pairs],
        "reward_shift": SHIFT,
    }
    read = {key: torch.tensor(columns[key], dtype=dtype) for key in get_record(name).reads}
    for key in ("chosen_logps", "rejected_logps"):
        read[key].requires_grad_()
    return read


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
