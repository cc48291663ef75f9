"""Preference trainers of studies: curves, an end at a loss that is no number, one order of pairs for all losses."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from lossmith.integrations.causal_lm.trainer import CompletionTrainer, Curves
from lossmith.integrations.trl.dpo import DPOTrainer
from lossmith.integrations.trl.kto import KTOTrainer

LOGGED = {"train_accuracy": "rewards/accuracies", "train_chosen_shift": "displacement/chosen"}
"""Curve -> what TRL's trainers log of it."""


@contextmanager
def quiet_making() -> Iterator[None]:
    """For the length of a `with` that makes a trainer: no bars of data sets, and no word on names that changed."""
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # TRL 1.16 and PEFT 0.21 use names that transformers 5.23 has changed.
            warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing` is deprecated")
            yield
    finally:
        if not shown:
            datasets.enable_progress_bars()


class PairOrder(Sampler[int]):
    """Rows in an order that depends on the seed, the epoch and the number of groups alone.

    Losses that see pairs and losses that see their answers one by one so meet the same pairs in the same order.

    Args:
        groups: How many, such as pairs.
        size: Rows of each group, which stay together.
        seed: >= 0.

    Example:
        >>> list(PairOrder(3, 1, seed=0)), list(PairOrder(3, 2, seed=0))
        ([2, 0, 1], [4, 5, 0, 1, 2, 3])
    """

    def __init__(self, groups: int, size: int, *, seed: int):
        self.groups, self.size, self.seed, self.epoch = groups, size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer when an epoch begins."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        for group in torch.randperm(self.groups, generator=generator).tolist():
            yield from range(group * self.size, (group + 1) * self.size)

    def __len__(self) -> int:
        return self.groups * self.size


class Ordered:
    """Orders the rows by `PairOrder` where the training arguments ask for a random order."""

    group = 1
    """Rows that stay together."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        trainer: Any = self
        rows = trainer.train_dataset if train_dataset is None else train_dataset
        if trainer.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(rows)  # pyright: ignore[reportAttributeAccessIssue]
        return PairOrder(len(rows) // self.group, self.group, seed=trainer.args.seed)


class PreferenceStudy(Ordered, Curves):
    """The part of a preference trainer that a study adds.

    Args:
        on_step: Called after every optimiser step with (step, planned steps).
        measure: The same, off the clock.
        group: Rows that stay together, such as the two answers of a pair.
        reference_pool: Rows of which the training rows are a draw, and their places there; draws from one pool share
            the reference's log-probabilities.
        **kwargs: As for the trainer.
    """

    _micro_batches: int

    def __init__(
        self,
        *,
        on_step: Callable[[int, int], None] | None = None,
        measure: Callable[[int, int], None] | None = None,
        group: int = 1,
        reference_pool: tuple[Any, Sequence[int]] | None = None,
        **kwargs: Any,
    ):
        self.group, self.reference_pool = group, reference_pool
        super().__init__(**kwargs)
        self.seen: list[tuple[int, Sequence[float]]] = []
        """Optimiser steps done, and what the loss moves along of each row of a micro-batch then, in nats."""
        self.reference_pool = None
        self.keep_curves(on_step, measure)
        self.curves |= {name: [] for name in LOGGED}

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in the trainer; a loss that is no number ends training."""
        found = super().compute_loss(model, inputs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if model.training:
            self.check_finite(found[0] if isinstance(found, tuple) else found, self._micro_batches)
        return found

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in the trainer; some of it becomes points of the curves."""
        super().log(logs, *args, **kwargs)
        for curve, name in LOGGED.items():
            if "loss" in logs and name in logs:
                self.curves[curve].append([float(self._trainer.state.global_step), float(logs[name])])

    def _note(self, rows: Mapping[str, Tensor]) -> None:
        super()._note(rows)  # pyright: ignore[reportAttributeAccessIssue]
        self.seen.append((self._trainer.state.global_step, self._moved(rows).tolist()))

    def _moved(self, rows: Mapping[str, Tensor]) -> Tensor:
        """What the loss moves along of each row: its log-ratio margin, or whichever takes its place."""
        raise NotImplementedError


class PairTrainer(PreferenceStudy, DPOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """`DPOTrainer` for studies; see `PreferenceStudy`."""

    def _moved(self, rows: Mapping[str, Tensor]) -> Tensor:
        margin = rows["chosen_logps"] - rows["rejected_logps"]
        if self.needs_reference:
            margin = margin - rows["ref_chosen_logps"] + rows["ref_rejected_logps"]
        return margin


class SingleTrainer(PreferenceStudy, KTOTrainer):  # pyright: ignore[reportIncompatibleMethodOverride]
    """`KTOTrainer` for studies; see `PreferenceStudy`."""

    def _moved(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Log-ratios of desirable completions, and of undesirable ones with the sign turned."""
        gained = rows["logps"] - rows["ref_logps"]
        return torch.where(rows["desirable"], gained, -gained)


class AnswerTrainer(Ordered, CompletionTrainer):
    """`CompletionTrainer` on chosen answers, in the order of the pairs."""

    seen: Sequence[tuple[int, Sequence[float]]] = ()
    """Nothing: no answer is compared with another."""
