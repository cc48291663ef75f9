"""What every loss module can do: bind inputs by name, turn them into one loss per item, reduce."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lossmith._checks import check_one_of, check_positive, check_same_device, did_you_mean
from lossmith._debug import check_finite_weights, debugging
from lossmith._numerics import full_precision
from lossmith._reduce import NumItems, reduce_loss
from lossmith._typing import Tensor
from lossmith.engines import Demand, LinearLogits, StatisticsSource
from lossmith.errors import LossmithWarning, ObjectiveInputError
from lossmith.nn.plan import Plan
from lossmith.objectives import ObjectiveRecord

IGNORE_INDEX = -100
"""Label of a row that does not count."""

_HINTS = {
    "kl": " Give log-ratios of policy to reference over prompts paired with other prompts' completions (any number; "
    "they are averaged), or torch.tensor(0.0) to go without.",
}

Inputs = dict[str, Any]
"""Tensors by name; `logits` may be `LinearLogits` or a source of statistics."""


class LossModule(nn.Module, ABC):
    """What every loss can do, alone or composed."""

    inputs: tuple[str, ...]
    """Keyword names of the tensors that `forward` takes, in positional order."""
    required: tuple[str, ...]
    """Those of them that it cannot do without."""
    items: tuple[str, ...]
    """Kinds of item that the loss returns values for; one kind, but for mixed sums."""
    batch_coupled: bool
    """True where k micro-batches are not one batch."""

    @abstractmethod
    def __str__(self) -> str:
        """The composition string that builds this loss."""

    def param_groups(self, lr: float, *, proxy_lr_multiplier: float = 1.0) -> list[dict[str, Any]]:
        """Optimiser groups for the loss's own parameters (proxies): their own learning rate, no weight decay.

        Args:
            lr: Learning rate of the model, > 0.
            proxy_lr_multiplier: The proxies learn at `lr` times this, > 0.

        Returns:
            One group, or none where the loss owns no parameters.
        """
        check_positive("lr", lr)
        check_positive("proxy_lr_multiplier", proxy_lr_multiplier)
        own = list(self.parameters())
        return [{"params": own, "lr": lr * proxy_lr_multiplier, "weight_decay": 0.0}] if own else []

    def set_progress(self, progress: float) -> None:
        """Say which share of training is done, in [0, 1]; only a schedule listens."""

    def demands(self, labels: Tensor, scopes: Mapping[str, Tensor] | None = None) -> list[Demand]:
        """What it reads of logits against these labels, for a source of statistics that serves several losses.

        Args:
            labels: Aligned with the logits, -100 where they do not count.
            scopes: As for the call of a sum whose terms name label scopes.

        Returns:
            One entry per term on logits; none where it reads no logits.
        """
        return []

    @abstractmethod
    def breakdown(
        self,
        *args: object,
        weights: Tensor | Mapping[str, Tensor] | None = None,
        num_items: NumItems | Mapping[str, NumItems] | None = None,
        reduction: str = "mean",
        **kwargs: object,
    ) -> dict[str, Tensor]:
        """The weighted value of each term; they add up to what a call with these arguments returns.

        All terms on logits are served by one pass. With reduction "none" each term has a value per item of its own.

        Returns:
            By the name of the term, without its weight, in the order written; the loss itself where it is one alone.

        Raises:
            ObjectiveInputError: For arguments that a call would refuse.
        """

    def plan(
        self,
        *args: object,
        weights: Tensor | Mapping[str, Tensor] | None = None,
        num_items: NumItems | Mapping[str, NumItems] | None = None,
        reduction: str = "mean",
        **kwargs: object,
    ) -> Plan:
        """How a call with these arguments is going to be computed, and why: engine, plan, products, memory.

        It takes what a call takes and computes nothing but which rows count.

        Raises:
            ObjectiveInputError: For arguments that a call would refuse.

        Example:
            >>> import lossmith
            >>> logits = lossmith.LinearLogits(torch.ones(4, 3, requires_grad=True), torch.ones(8, 3))
            >>> plan = lossmith.loss("focal").plan(logits, torch.tensor([0, 1, 2, -100]))
            >>> plan.engine, plan.name, plan.products, plan.items
            ('chunked', 'gradient in forward', 2, 3)
        """
        inputs = self.bind(args, kwargs)
        check_one_of("reduction", reduction, ("none", "sum", "mean"))
        return self._plan(inputs, weights, num_items, reduction)

    def _plan(self, inputs: Inputs, weights: object, num_items: object, reduction: str) -> Plan:
        first = inputs[self.required[0]]
        reason = f"'{self}' is a formula of numbers that exist already."
        return Plan(
            engine="dense", name="dense", products=0, items=len(first), chunks=1, scratch_bytes=0, reason=reason
        )

    def bind(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Inputs:
        """The inputs by name, those left out or None missing.

        Raises:
            ObjectiveInputError: For too many, unknown, doubled or missing inputs, or one that is no tensor.
        """
        shown = ", ".join(f"`{name}`" for name in self.inputs)
        if len(args) > len(self.inputs):
            raise ObjectiveInputError(f"'{self}' takes at most {len(self.inputs)} inputs ({shown}), got {len(args)}.")
        inputs = dict(zip(self.inputs, args, strict=False))
        for name, value in kwargs.items():
            if name == "scopes":
                raise ObjectiveInputError(f"'{self}' names no scope: write '{self}[answer]' to give it one.")
            if name not in self.inputs:
                raise ObjectiveInputError(
                    f"'{self}' has no input `{name}`.{did_you_mean(name, self.inputs)} It reads {shown}."
                )
            if name in inputs:
                raise ObjectiveInputError(f"`{name}` is given twice, by position and by keyword.")
            inputs[name] = value
        inputs = {name: value for name, value in inputs.items() if value is not None}
        for name, value in inputs.items():
            if isinstance(value, LinearLogits) and name != "logits":
                raise ObjectiveInputError(f"`{name}` must be a torch.Tensor, got LinearLogits.")
        missing = [name for name in self.required if name not in inputs]
        if missing:
            hint = "".join(_HINTS.get(name, "") for name in missing)
            raise ObjectiveInputError(f"'{self}' also needs {', '.join(f'`{name}`' for name in missing)}.{hint}")
        tensors: Inputs = {}
        for name, value in inputs.items():
            if name == "logits" and isinstance(value, LinearLogits | StatisticsSource):
                tensors[name] = value
                continue
            if not isinstance(value, Tensor):
                kinds = "a torch.Tensor or lossmith.LinearLogits" if name == "logits" else "a torch.Tensor"
                raise ObjectiveInputError(f"`{name}` must be {kinds}, got {type(value).__name__}.")
            tensors[name] = value
        check_same_device(**tensors)
        return tensors


class ObjectiveModule(LossModule):
    """One objective with its hyper-parameters; one subclass per family."""

    def __init__(self, record: ObjectiveRecord, hyperparameters: dict[str, Any], **settings: Any):
        super().__init__()
        self.record = record
        self.hyperparameters = {**record.hyperparameters, **hyperparameters}
        self.settings = {**record.settings, **settings}
        self.items = (record.item,)
        self.batch_coupled = record.batch_coupled
        self.required = self.inputs
        self._warned_of_accumulation = False

    def __str__(self) -> str:
        from lossmith.nn.composition import Term, check_hyperparameters

        return str(
            Term(self.record, 1.0, check_hyperparameters(self.record, {**self.hyperparameters, **self.settings}))
        )

    def extra_repr(self) -> str:
        """Name and hyper-parameters, for `repr`."""
        return str(self)

    @property
    def needed(self) -> tuple[str, ...]:
        """Statistics that the objective reads under these hyper-parameters."""
        return tuple(
            name
            for name in self.record.reads
            if name not in self.record.needed_when or self.hyperparameters[self.record.needed_when[name]]
        )

    def forward(
        self,
        *args: object,
        weights: Tensor | Mapping[str, Tensor] | None = None,
        num_items: NumItems | Mapping[str, NumItems] | None = None,
        reduction: str = "mean",
        **kwargs: object,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            *args: The inputs of the family in the order of `self.inputs`.
            weights: One weight per item; an item that does not count may carry any.
            num_items: What "mean" divides by, instead of the items that count (or the sum of their weights).
            reduction: "mean", "sum", or "none" (one value per item, 0 where it does not count).
            **kwargs: The inputs by name.

        Returns:
            A scalar, or one value per item. Where nothing counts: 0 that keeps its graph.

        Raises:
            ObjectiveInputError: For inputs of the wrong kind, shape, device or range.
        """
        if weights is not None and self.record.sorts:
            raise ObjectiveInputError(
                f"'{self}' sorts its {self.items[0]}s, so no loss belongs to one of them: it takes no `weights`."
            )
        inputs = self.bind(args, kwargs)
        item_weights: Tensor | None = self._own(weights, "weights")
        divisor: NumItems | None = self._own(num_items, "num_items")
        self._check_places(inputs, item_weights)
        with full_precision(next(iter(inputs.values())).device):
            return self.evaluate(inputs, item_weights, divisor, reduction)

    def breakdown(
        self,
        *args: object,
        weights: Tensor | Mapping[str, Tensor] | None = None,
        num_items: NumItems | Mapping[str, NumItems] | None = None,
        reduction: str = "mean",
        **kwargs: object,
    ) -> dict[str, Tensor]:
        """The loss under its own name; see `LossModule.breakdown`."""
        value = self(*args, weights=weights, num_items=num_items, reduction=reduction, **kwargs)
        return {str(self): value}

    def evaluate(self, inputs: Inputs, weights: Tensor | None, num_items: NumItems | None, reduction: str) -> Tensor:
        """The loss of inputs that are bound and checked."""
        losses, valid = self.item_losses(inputs)
        check_finite_weights(weights, valid)
        self._warn_of_accumulation(num_items, valid)
        return self.reduce(losses, valid, weights, num_items, reduction)

    @abstractmethod
    def item_losses(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """One loss per item, 0 where it does not count, and whether it counts."""

    def reduce(
        self, losses: Tensor, valid: Tensor, weights: Tensor | None, num_items: NumItems | None, reduction: str
    ) -> Tensor:
        """From one loss per item to what the caller asked for."""
        return reduce_loss(losses, valid, weights=weights, num_items=num_items, reduction=reduction)

    def apply_function(self, statistics: Mapping[str, Tensor], *, rows: int) -> Tensor:
        """The pure objective on the statistics of `rows` items, with this module's hyper-parameters.

        A statistic that these hyper-parameters do not need arrives as ones.
        """
        settings = {
            name: value
            for name, value in self.hyperparameters.items()
            if name not in self.record.module_hyperparameters
        }
        given = dict(statistics)
        like = next(value for value in given.values() if value.is_floating_point())
        for name in self.record.reads:
            if name not in given:
                given[name] = like.new_ones(()) if name == "reward_shift" else like.new_ones(rows)
        values = self.record.function(**given, **settings)
        return self._checked(values, rows)

    def _checked(self, values: Tensor, rows: int) -> Tensor:
        """An objective that returns another number of losses than it has items would be normalised wrongly."""
        family, item = self.record.family, self.record.item
        if not isinstance(values, Tensor):
            raise ObjectiveInputError(
                f"'{self.record.name}' must return a tensor of losses, got {type(values).__name__}."
            )
        if family == "region" or item == "batch":
            expected = "()" if values.shape != () else None
        elif family == "metric" and item in ("pair", "triplet"):
            expected = f"({item}s,)" if values.ndim != 1 else None
        else:
            size = 2 * rows if family == "preference" and item == "completion" else rows
            expected = f"({size},)" if tuple(values.shape) != (size,) else None
        if expected is not None:
            raise ObjectiveInputError(
                f"'{self.record.name}' must return one loss per {item}, shape {expected}, got {tuple(values.shape)}."
            )
        return values

    def _check_places(self, inputs: Inputs, weights: object) -> None:
        """Weights and the loss's own parameters and buffers lie where its inputs do."""
        own = {name.rpartition(".")[2]: value for name, value in (*self.named_parameters(), *self.named_buffers())}
        if weights is not None:
            if not isinstance(weights, Tensor):
                raise ObjectiveInputError(f"`weights` must be a torch.Tensor, got {type(weights).__name__}.")
            own["weights"] = weights
        first = self.required[0]
        check_same_device(**{first: inputs[first], **own})

    def _own(self, value: Any, name: str) -> Any:
        """The entry of this loss's kind of item where the caller gave a dict by kind."""
        if not isinstance(value, Mapping):
            return value
        if set(value) != set(self.items):
            raise ObjectiveInputError(f"`{name}` names {sorted(value)}, but '{self}' counts {self.items[0]}.")
        return value[self.items[0]]

    def _warn_of_accumulation(self, num_items: NumItems | None, valid: Tensor) -> None:
        if num_items is None or not self.batch_coupled or self._warned_of_accumulation:
            return
        if isinstance(num_items, Tensor) and num_items.device.type != "cpu" and not debugging():
            return
        # Counting what is valid makes a GPU wait; there the number of items of the batch is a bound.
        here = int(valid.sum()) if valid.device.type == "cpu" or debugging() else valid.numel()
        if float(num_items) > here > 0:
            self._warned_of_accumulation = True
            warnings.warn(
                f"'{self}' couples the items of a batch: {here} of `num_items` = {float(num_items):g} here, and "
                f"several micro-batches are not one batch.",
                LossmithWarning,
                stacklevel=4,
            )


def graph_zero(*tensors: Tensor) -> Tensor:
    """A zero that depends on every one of `tensors`: its gradients are 0, whatever values (NaN, inf) they hold."""
    parts = [tensor.reshape(-1)[:0].sum() for tensor in tensors]
    return torch.stack(torch.broadcast_tensors(*parts)).sum() if len(parts) > 1 else parts[0]


def scatter(values: Tensor, valid: Tensor) -> Tensor:
    """`values` at the places where `valid`, 0 elsewhere; in their graph also where there are none."""
    if values.numel() == valid.numel():
        return values.reshape(valid.shape)
    return values.new_zeros(valid.shape).masked_scatter(valid, values)
