"""One call on made-up items when a loss is built: a hyper-parameter out of range is found before training."""

import torch

from lossmith._typing import Tensor
from lossmith.nn.base import ObjectiveModule

_HALF = -0.6931471805599453
_TWO = torch.tensor([_HALF, _HALF])
_PROBE: dict[str, Tensor] = {
    "token_logps": _TWO,
    "entropy": -_TWO,
    "log_normalizer": -_TWO,
    "mean_logits": torch.zeros(2),
    "mean_class_logps": _TWO,
    "top_20_entropy": -_TWO,
    "log_sum_sq_probs": _TWO,
    "max_logps": _TWO,
    "complement_logps": _TWO,
    "class_probs": torch.full((2, 2), 0.5),
    "class_ids": torch.tensor([0, 1]),
    "class_mass": torch.ones(2),
    "chosen_logps": _TWO,
    "rejected_logps": 2 * _TWO,
    "ref_chosen_logps": _TWO,
    "ref_rejected_logps": _TWO,
    "chosen_lengths": torch.ones(2),
    "rejected_lengths": torch.ones(2),
    "logps": _TWO,
    "ref_logps": _TWO,
    "desirable": torch.tensor([True, False]),
    "kl": torch.tensor(0.0),
    "reward_shift": torch.tensor(0.0),
    "embeddings": torch.eye(2),
    "labels": torch.tensor([0, 0]),
    "similarities": torch.eye(2),
    "distances": 1 - torch.eye(2),
    "same": torch.eye(2) == 0,
    "different": torch.zeros(2, 2, dtype=torch.bool),
}


def probe(module: ObjectiveModule) -> None:
    """Call the objective of `module` once, so that its own checks of hyper-parameters run now.

    Raises:
        ObjectiveInputError: What the objective says of its hyper-parameters.
    """
    statistics = {name: _PROBE[name] for name in module.record.reads if name in _PROBE}
    if module.record.proxy_shape:
        proxies = module.get_parameter("proxies").detach()
        if proxies.is_meta:
            return
        statistics["proxies"] = proxies
        statistics["embeddings"] = proxies.new_ones(2, proxies.shape[-1])
    module.apply_function(statistics, rows=2)
