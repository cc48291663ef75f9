"""Our metric losses under the calling convention of pytorch-metric-learning."""

from typing import Any

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction

from lossmith._numerics import full_precision
from lossmith._typing import Tensor
from lossmith.errors import ObjectiveInputError
from lossmith.integrations.pytorch_metric_learning.mined import Call, counted_rows, restricted_mean
from lossmith.nn import LossModule, MetricLoss, WeightedSum
from lossmith.nn import loss as build

THEIR_NAMES = {
    "circle": "CircleLoss",
    "contrastive": "ContrastiveLoss",
    "lifted_structure": "LiftedStructureLoss",
    "multi_similarity": "MultiSimilarityLoss",
    "nca": "NCALoss",
    "nt_xent": "NTXentLoss",
    "supcon": "SupConLoss",
    "triplet_margin": "TripletMarginLoss",
}
"""Our losses -> their class of the same formula; `CrossBatchMemory` and `SelfSupervisedLoss` go by its name."""


def to_pml(loss: str | LossModule, **settings: Any) -> "ToPml":
    """A metric loss of lossmith under their call `loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)`.

    `indices_tuple` restricts what is compared as it does in their loss of the same formula: losses with one value per
    anchor read it as a set of pairs, losses of pairs and of triplets count every entry of the list, and losses with
    proxies, and `nca`, weigh each anchor by how often it is named. A loss that cannot says so. Rows labelled -100 are
    left out.

    Args:
        loss: A metric loss, or a sum of them, as a module or by name.
        **settings: Hyper-parameters of a loss given by name, as for `lossmith.loss`.

    Returns:
        A loss of theirs, which their miners, trainers, `CrossBatchMemory`, `SelfSupervisedLoss`, `MultipleLosses` and
        `DistributedLossWrapper` accept. Ranks are gathered once: by that wrapper, or by our `gather=True`.

    Raises:
        ObjectiveInputError: If the loss reads something else than embeddings and labels, or names label scopes.

    Example:
        >>> from pytorch_metric_learning.miners import PairMarginMiner
        >>> theirs = to_pml("contrastive", neg_margin=1.5)
        >>> embeddings, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> theirs(embeddings, labels, PairMarginMiner(pos_margin=1.0, neg_margin=1.0)(embeddings, labels))
        tensor(1.4142)
    """
    if isinstance(loss, str):
        loss = build(loss, **settings)
    elif settings and isinstance(loss, LossModule):
        raise ObjectiveInputError(f"`{next(iter(settings))}` must be given with a name, '{loss}' is built already.")
    if not isinstance(loss, LossModule):
        raise ObjectiveInputError(f"`loss` must be a name or a module from lossmith.loss, got {type(loss).__name__}.")
    terms = list(loss.terms) if isinstance(loss, WeightedSum) else [loss]
    if not all(isinstance(term, MetricLoss) for term in terms):
        shown = ", ".join(f"`{name}`" for name in loss.inputs)
        raise ObjectiveInputError(f"`loss` must be a metric loss to be called as theirs, '{loss}' reads {shown}.")
    if isinstance(loss, WeightedSum) and any(term.scope for term in loss.composition.terms):
        raise ObjectiveInputError(f"`loss` must be without label scopes, which their call has not, got '{loss}'.")
    name = THEIR_NAMES.get(loss.record.name, "ToPml") if isinstance(loss, MetricLoss) else "ToPml"
    return type(name, (ToPml,), {})(loss)


class ToPml(BaseMetricLossFunction):
    """One of our metric losses under their call; `to_pml` builds it, in a class of the name that their wrappers know.

    Args:
        loss: A metric loss, or a sum of them.
    """

    def __init__(self, loss: LossModule):
        super().__init__()
        self.objective = loss

    def __reduce__(self) -> Any:
        # The class itself cannot be found by name.
        return to_pml, (self.objective,)

    def extra_repr(self) -> str:
        """The composition string, for `repr`."""
        return str(self.objective)

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> dict[str, dict[str, Any]]:
        """What their `forward` asks of a loss: the mean over our items, which no reducer of theirs changes."""
        if indices_tuple is not None and len(indices_tuple) not in (3, 4):
            raise ObjectiveInputError(
                f"`indices_tuple` must be 3 tensors (triplets) or 4 (pairs), got {len(indices_tuple)}."
            )
        indices = None if indices_tuple is None else tuple(part.to(embeddings.device).long() for part in indices_tuple)
        call = Call(embeddings, labels, ref_emb, ref_labels, indices, own=ref_emb is embeddings)
        with full_precision(embeddings.device):
            value = self._value(call)
        return {"loss": {"losses": value, "indices": None, "reduction_type": "already_reduced"}}

    def _value(self, call: Call) -> Tensor:
        loss = self.objective
        if call.own and call.indices is None:
            return loss(embeddings=call.embeddings, labels=call.labels)
        call = counted_rows(call)
        if not isinstance(loss, WeightedSum):
            return restricted_mean(loss, call)
        if loss.scheduled:
            raise ObjectiveInputError(f"'{loss}' changes over training: it takes no `indices_tuple` and no `ref_emb`.")
        weights = [term.weight for term in loss.composition.terms]
        parts = [weight * restricted_mean(term, call) for weight, term in zip(weights, loss.terms, strict=True)]
        return torch.stack(parts).sum()
