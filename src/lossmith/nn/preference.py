"""Modules on log-probabilities of whole completions: preference losses on pairs, unpaired losses on single ones."""

from typing import Any, final

import torch

from lossmith._debug import check_finite_rows, debugging
from lossmith._numerics import at_least_float32
from lossmith._typing import Tensor
from lossmith.errors import ObjectiveInputError
from lossmith.nn.base import Inputs, ObjectiveModule, scatter
from lossmith.nn.running import RunningMean
from lossmith.objectives import VOCABULARY, ObjectiveRecord

SERVED = ("reward_shift",)
"""Statistics that a module keeps itself."""


@final
class PreferenceLoss(ObjectiveModule):
    """A preference objective on pairs: summed log-probabilities of the chosen and rejected completions.

    All inputs are [pairs]; the loss takes all six and uses those that its objective reads. A pair with an empty
    completion (length 0) or `valid` False does not count.
    """

    inputs = (*(name for name in VOCABULARY["preference"] if name not in SERVED), "valid")

    def __init__(self, record: ObjectiveRecord, hyperparameters: dict[str, Any]):
        super().__init__(record, hyperparameters)
        self.required = tuple(name for name in self.needed if name not in SERVED)
        self.rewards = RunningMean() if "reward_shift" in self.needed else None
        self.batch_coupled = record.batch_coupled or self.rewards is not None

    def item_losses(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """One loss per pair; for an objective of completions first the chosen ones, then the rejected ones."""
        _check_shapes(inputs, like=self.required[0], what="pair")
        valid = _valid(inputs, like=inputs[self.required[0]])
        for name in ("chosen_lengths", "rejected_lengths"):
            if name in inputs:
                _check_lengths(name, inputs[name])
                valid = valid & (inputs[name] != 0)
        statistics = _rows(inputs, self.required, valid)
        if self.rewards is not None:
            chosen = statistics["chosen_logps"] - statistics["ref_chosen_logps"]
            rejected = statistics["rejected_logps"] - statistics["ref_rejected_logps"]
            rewards = self.hyperparameters["beta"] * torch.cat([chosen, rejected]).detach()
            statistics["reward_shift"] = _shift(self.rewards, rewards, self.training)
        values = self.apply_function(statistics, rows=int(valid.sum()))
        counted = valid.repeat(2) if self.record.item == "completion" else valid
        return scatter(values, counted), counted


@final
class UnpairedLoss(ObjectiveModule):
    """An unpaired objective on single completions that are each desirable or not.

    Inputs are [completions], but for `kl`, which may have any shape and is averaged: log-ratios of policy to reference
    over mismatched prompts and completions. With the hyper-parameter `running_kl` it is averaged over all calls in
    training mode (batches of one completion give a noisy estimate), and a call may leave it out.
    """

    inputs = (*(name for name in VOCABULARY["unpaired"] if name not in SERVED), "valid")

    def __init__(self, record: ObjectiveRecord, hyperparameters: dict[str, Any]):
        super().__init__(record, hyperparameters)
        self.running_kl = RunningMean() if self.hyperparameters.get("running_kl") else None
        left_out = SERVED if self.running_kl is None else (*SERVED, "kl")
        self.required = tuple(name for name in self.needed if name not in left_out)
        self.rewards = RunningMean() if "reward_shift" in self.needed else None
        self.batch_coupled = record.batch_coupled or self.running_kl is not None

    def item_losses(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """One loss per completion."""
        per_row = {name: value for name, value in inputs.items() if name != "kl"}
        _check_shapes(per_row, like="logps", what="completion")
        if inputs["desirable"].dtype != torch.bool:
            raise ObjectiveInputError(f"`desirable` must be bool (True = desirable), got {inputs['desirable'].dtype}.")
        valid = _valid(inputs, like=inputs["logps"])
        names = tuple(name for name in self.needed if name in per_row)
        statistics = _rows(per_row, names, valid)
        if "kl" in self.needed:
            statistics["kl"] = self._kl(inputs.get("kl"), like=statistics["logps"])
        if self.rewards is not None:
            rewards = self.hyperparameters["beta"] * (statistics["logps"] - statistics["ref_logps"]).detach()
            statistics["reward_shift"] = _shift(self.rewards, rewards, self.training)
        values = self.apply_function(statistics, rows=int(valid.sum()))
        return scatter(values, valid), valid

    def _kl(self, given: Tensor | None, *, like: Tensor) -> Tensor:
        if given is not None and (not given.is_floating_point() or given.numel() == 0):
            raise ObjectiveInputError(
                f"`kl` must hold at least one floating-point number, got {given.dtype} {tuple(given.shape)}."
            )
        if given is not None:
            check_finite_rows("kl", given.flatten(), torch.ones_like(given, dtype=torch.bool).flatten())
        mean = None if given is None else at_least_float32(given.detach()).mean().to(like.dtype)
        if self.running_kl is None:
            assert mean is not None
            return mean
        if given is not None and self.training:
            self.running_kl.observe(at_least_float32(given.detach()))
        if int(self.running_kl.count) == 0:
            raise ObjectiveInputError(
                f"'{self}' has seen no `kl` yet: give it on the first call in training mode, log-ratios of policy to "
                f"reference over mismatched prompts and completions."
            )
        return self.running_kl.mean(like)


def _check_shapes(inputs: Inputs, *, like: str, what: str) -> None:
    shape = tuple(inputs[like].shape)
    if len(shape) != 1:
        raise ObjectiveInputError(f"`{like}` must have one value per {what}, [{what}s], got {shape}.")
    for name, value in inputs.items():
        if tuple(value.shape) != shape:
            raise ObjectiveInputError(f"Shapes must be equal, got `{like}` {shape}, `{name}` {tuple(value.shape)}.")
        if name.endswith("logps") and not value.is_floating_point():
            raise ObjectiveInputError(f"`{name}` must be floating-point log-probabilities, got {value.dtype}.")


def _check_lengths(name: str, lengths: Tensor) -> None:
    if lengths.dtype == torch.bool or lengths.is_complex():
        raise ObjectiveInputError(f"`{name}` must be numbers of tokens, got {lengths.dtype}.")
    if (lengths.device.type == "cpu" or debugging()) and not bool((lengths >= 0).all()):
        raise ObjectiveInputError(f"`{name}` must be >= 0 tokens, got {lengths[~(lengths >= 0)][0].item():g}.")


def _valid(inputs: Inputs, *, like: Tensor) -> Tensor:
    valid = inputs.get("valid")
    if valid is None:
        return torch.ones_like(like, dtype=torch.bool)
    if valid.dtype != torch.bool:
        raise ObjectiveInputError(f"`valid` must be bool (True = counts), got {valid.dtype}.")
    return valid


def _rows(inputs: Inputs, names: tuple[str, ...], valid: Tensor) -> dict[str, Tensor]:
    """The named inputs of the items that count, numbers in one floating dtype of at least float32."""
    rows = {name: inputs[name][valid] for name in names}
    dtype = torch.float32
    for name in names:
        check_finite_rows(name, rows[name], valid)
        if rows[name].is_floating_point():
            dtype = torch.promote_types(dtype, rows[name].dtype)
    return {name: value if value.dtype == torch.bool else value.to(dtype) for name, value in rows.items()}


def _shift(mean: RunningMean, rewards: Tensor, training: bool) -> Tensor:
    if training:
        mean.observe(rewards)
    return mean.mean(rewards)
