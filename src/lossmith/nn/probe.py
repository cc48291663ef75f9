"""One call on two made-up items when a loss is built: a hyper-parameter out of range is found before training."""

import torch

from lossmith._typing import Tensor
from lossmith.nn.modules import ObjectiveModule

_HALF = -0.6931471805599453
_PROBE: dict[str, Tensor] = {
    "token_logps": torch.tensor([_HALF, _HALF]),
    "entropy": torch.tensor([-_HALF, -_HALF]),
    "log_normalizer": torch.tensor([-_HALF, -_HALF]),
    "mean_logits": torch.zeros(2),
    "log_sum_sq_probs": torch.tensor([_HALF, _HALF]),
    "max_logps": torch.tensor([_HALF, _HALF]),
    "complement_logps": torch.tensor([_HALF, _HALF]),
    "class_probs": torch.full((2, 2), 0.5),
    "class_ids": torch.tensor([0, 1]),
    "class_mass": torch.ones(2),
    "embeddings": torch.eye(2),
    "labels": torch.tensor([0, 0]),
}


def probe(module: ObjectiveModule) -> None:
    """Call the objective of `module` once, so that its own checks of hyper-parameters run now.

    Raises:
        ObjectiveInputError: What the objective says of its hyper-parameters.
    """
    statistics = {name: _PROBE[name] for name in module.record.reads if name in _PROBE}
    if module.record.proxy_shape:
        proxies = module.get_parameter("proxies").detach()
        statistics["proxies"] = proxies
        statistics["embeddings"] = proxies.new_ones(2, proxies.shape[-1])
    module.apply_function(statistics)
