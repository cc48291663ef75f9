"""The loss of a whole evaluation set from its rows: it does not depend on how they were batched."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from lossmith._typing import Int, Tensor
from lossmith.engines import LinearLogits, LinearSource
from lossmith.integrations.lm_head import HeadLoss
from lossmith.integrations.trl.meters import Meter, Rows, Sums, finished, wide
from lossmith.integrations.trl.scoring import Completions, Scored
from lossmith.nn import IGNORE_INDEX, LossModule, ObjectiveModule, RegionLoss, TokenLoss, UnpairedLoss, WeightedSum


class WholeSet:
    """Rows of an evaluation set as they come."""

    def __init__(self) -> None:
        self._rows: list[Mapping[str, Tensor]] = []
        self._regions: dict[str, list[Tensor]] = {}

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Rows of one batch, of all ranks."""
        self._rows.append(rows)

    def rows(self) -> dict[str, Tensor]:
        """All rows by name; none where there were none."""
        return {name: torch.cat([rows[name] for rows in self._rows]) for name in self._rows[0]} if self._rows else {}

    def add_terms(
        self, rows: dict[str, Tensor], loss: LossModule, source: LinearSource, good: Int[Tensor, "rows seq"]
    ) -> None:
        """Put what the terms on logits say of a batch into its `rows`; a region of a whole batch has no rows.

        Args:
            rows: Of the batch, [rows] each; the first ones of `good` belong to them.
            loss: The loss.
            source: Statistics of the batch.
            good: Labels that its terms on logits see.
        """
        number = len(next(iter(rows.values())))
        for key, term, _ in _terms(loss):
            if not isinstance(term, TokenLoss | RegionLoss):
                continue
            values = term(logits=source, labels=good, reduction="none")
            if isinstance(term, RegionLoss) and term.region == "batch":
                # Rows that fill up the last batch of several ranks are in it, as they are in training.
                self._regions.setdefault(key, []).append(values[(good != IGNORE_INDEX).any()[None]])
                continue
            counts = (good != IGNORE_INDEX).sum(1)[:number]
            token = isinstance(term, TokenLoss)
            rows[f"{key}/sum"] = (values.sum(1) if token else values)[:number]
            rows[f"{key}/count"] = counts if token else (counts > 0).long()

    def loss(self, loss: LossModule, inputs: Mapping[str, Tensor], over_ranks: Callable[[Tensor], Tensor]) -> float:
        """The loss of the set: comparing terms of all rows at once, terms on logits as means over all items.

        Args:
            loss: The loss.
            inputs: What its comparing terms read, of all rows.
            over_ranks: Adds a tensor up over the ranks.
        """
        rows, total = self.rows(), 0.0
        for key, term, weight in _terms(loss):
            if isinstance(term, RegionLoss) and term.region == "batch":
                values = wide(torch.cat(self._regions[key]))
                summed, count = over_ranks(torch.stack([values.sum(), values.new_tensor(len(values))])).tolist()
            elif isinstance(term, TokenLoss | RegionLoss):
                summed, count = float(wide(rows[f"{key}/sum"]).sum()), float(rows[f"{key}/count"].sum())
            else:
                term = _ready(term)
                own = {name: value for name, value in inputs.items() if name in term.inputs}
                summed, count = float(term(**own)), 1.0
            total += weight * summed / max(count, 1.0)
        return total


class WholeSetMixin:
    """The part of a preference trainer that evaluates, and what it must know of batches for that and for training."""

    loss: LossModule
    needs_reference: bool

    def _completions(self, inputs: Mapping[str, Any]) -> Completions:
        raise NotImplementedError

    def _given(self, logps: Tensor, batch: Completions, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Inputs [rows] of the loss from log-probabilities of all completions."""
        raise NotImplementedError

    def _rows(self, given: Mapping[str, Tensor], scored: Scored, batch: Completions) -> dict[str, Tensor]:
        """What is logged of each row, without gradient."""
        raise NotImplementedError

    def _sums(self, rows: Rows) -> Sums:
        raise NotImplementedError

    def _inputs_of(self, rows: Rows) -> dict[str, Tensor]:
        """Inputs of the comparing terms from the rows of a whole set."""
        raise NotImplementedError

    def _evaluated_extra(self, model: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Further numbers of each row of an evaluation batch."""
        return {}

    @property
    def _trainer(self) -> Any:
        """Itself, as the trainer that it is part of."""
        return self

    @property
    def _head(self) -> HeadLoss:
        if "_head_loss" not in self.__dict__:
            self._head_loss = HeadLoss(self._trainer.accelerator.unwrap_model(self._trainer.model))
        return self._head_loss

    def _model_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
        return given | ({"output_router_logits": True} if self._trainer.aux_loss_enabled else {})

    def _tell_progress(self) -> None:
        # Evaluation without training sees the end of a schedule.
        steps = self._trainer.state.max_steps
        self.loss.set_progress(min(self._trainer.state.global_step / steps, 1.0) if steps > 0 else 1.0)

    def _over_ranks(self, values: Tensor) -> Tensor:
        return self._trainer.accelerator.reduce(values, "sum")

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """TRL's loop, with the loss and the metrics of all rows at once: they do not depend on the batch size."""
        self._tell_progress()
        self._whole_set = WholeSet()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)  # pyright: ignore
        rows = self._whole_set.rows()
        if rows:
            values = {"loss": self._whole_set.loss(self.loss, self._inputs_of(rows), self._over_ranks)}
            meter = Meter()
            meter.add(self._sums(rows))
            values |= finished(meter.means(lambda totals: totals))
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in values.items()})
        return output

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Keep what is to be known of the rows of a batch."""
        inputs = self._trainer._prepare_inputs(inputs)
        self.loss.eval()
        with torch.no_grad(), self._trainer.compute_loss_context_manager():
            extra = self._evaluated_extra(model, inputs)
            batch, found = self._completions(inputs), dict[str, Tensor]()

            def compute(linear: LinearLogits) -> Tensor:
                here = batch.to(linear.device)
                scored = Scored.of(linear, here, self.loss)
                found.update(self._rows(self._given(scored.logps, here, inputs), scored, here))
                self._whole_set.add_terms(found, self.loss, scored.source, here.good)
                return scored.logps.sum()

            self._head(model, self._model_inputs(inputs), compute)
        self._whole_set.add(self._trainer.accelerator.gather_for_metrics(found | extra))
        return None, None, None


def _terms(loss: LossModule) -> Iterator[tuple[str, ObjectiveModule, float]]:
    """Key, module and present weight of the terms that count now."""
    if not isinstance(loss, WeightedSum):
        assert isinstance(loss, ObjectiveModule)
        yield "0", loss, 1.0
        return
    progress = round(float(loss.progress), 6) if loss.scheduled else 1.0
    for place, (term, weight) in enumerate(loss.weights_at(progress)):
        assert isinstance(term, ObjectiveModule)
        if weight:
            yield str(place), term, weight


def _ready(term: ObjectiveModule) -> ObjectiveModule:
    """The term; before the first training step one with a running divergence takes that of the set itself."""
    if isinstance(term, UnpairedLoss) and term.running_kl is not None and int(term.running_kl.count) == 0:
        return copy.deepcopy(term).train()
    return term
