"""Small batches for the metric objectives, and the objectives called on them as their modules do."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import oracles_metric as oracle
from lossmith.objectives import get_record, list_losses

CLASSES, DIM = 4, 3
LABELS = [2, 0, 2, 1, 0, 2, 1, 3]
"""Three rows of class 2, two of 0 and 1, and one alone in class 3."""

RECORDS = [record for record in list_losses("metric") if hasattr(oracle, record.name)]
ON_PROXIES = [record.name for record in RECORDS if record.proxy_shape]
ON_ROWS = [record.name for record in RECORDS if not record.proxy_shape]
EVERY = [*ON_PROXIES, *ON_ROWS]


def embeddings(count: int = len(LABELS), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.3 * torch.randn(count, DIM, generator=generator, dtype=torch.float64) + 0.3


def proxies(name: str = "", seed: int = 50) -> Tensor:
    shape = (CLASSES, 2, DIM) if name == "soft_triple" else (CLASSES, DIM)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics(rows: Tensor, labels: Tensor, *, normalize: bool = True) -> dict[str, Tensor]:
    """What the objectives read, from plain torch; distances with gradient 0 at 0."""
    points = F.normalize(rows, dim=-1) if normalize else rows
    equal = labels[:, None] == labels[None, :]
    apart = (points[:, None] - points[None, :]).square().sum(-1)
    zero = apart == 0
    return {
        "embeddings": rows,
        "labels": labels,
        "similarities": points @ points.T,
        "distances": apart.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0),
        "same": equal & ~torch.eye(len(labels), dtype=torch.bool),
        "different": ~equal,
    }


def losses_of(name: str, rows: Tensor, labels: Any = LABELS, owned: Tensor | None = None, **settings: Any) -> Tensor:
    """The objective on raw embeddings, as its module calls it."""
    record = get_record(name)
    read = statistics(rows, torch.as_tensor(labels), normalize=settings.get("normalize", True))
    if owned is not None:
        read["proxies"] = owned
    if "normalize" in record.module_hyperparameters:
        settings.pop("normalize", None)
    return record.function(*[read[part] for part in record.reads], **settings)


def mean_of(name: str, losses: Tensor, labels: list[int] = LABELS) -> Tensor:
    """The mean as the module forms it: anchors without a positive do not count where the record says so."""
    if not get_record(name).needs_positives:
        return losses.mean()
    return losses.sum() / sum(labels.count(y) > 1 for y in labels)
