"""TRL's KTO trainer with any unpaired objective, alone or with terms on the desirable completions."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer as TRLKTOTrainer

from lossmith._typing import Int, Tensor
from lossmith.engines import gather_rows
from lossmith.errors import ConfigurationError, DataError, LossmithWarning
from lossmith.integrations.reference import completion_logps
from lossmith.integrations.trl.meters import Rows, Sums, completion_sums, wide
from lossmith.integrations.trl.preference import PreferenceMixin
from lossmith.integrations.trl.scoring import Completions, Scored, singles, unshifted_labels
from lossmith.integrations.trl.settings import KTO, model_name
from lossmith.nn import LossModule

WITHOUT_KL = "apo_zero_unpaired"
"""TRL's `loss_type` for which it makes no mismatched completions of its own, and asks for no order of the rows."""


class KTOTrainer(PreferenceMixin, TRLKTOTrainer):
    """`trl.KTOTrainer` with a lossmith loss.

    The divergence that `kto` reads is the mean log-ratio of policy to reference over prompts with the completions of
    other prompts: each row has one such completion, drawn once by `args.seed`, and all micro-batches and ranks of an
    optimiser step are averaged. So it depends neither on the order of the rows nor on how they are batched, and any
    `train_sampling_strategy` will do ("random" mixes data that come sorted).

    Args:
        model: As for TRL: a name, a folder, a causal language model or a PEFT model.
        ref_model: A reference of its own; None takes the model as it is before training (adapters off, or a copy of a
            trained adapter), without a second model in memory.
        args: `trl.KTOConfig`. Settings of TRL's losses are refused; `precompute_ref_batch_size` is heeded.
        data_collator: As for TRL.
        train_dataset: With columns `completion` and `label` (True = desirable) and `prompt`, or pairs, which TRL
            takes apart; or with token ids, which are taken as they are: `prompt_ids`, `completion_ids` and `label`.
        eval_dataset: As for TRL; evaluation values do not depend on `per_device_eval_batch_size`.
        processing_class: A tokenizer.
        loss: "kto", "kto(running_kl=True)" or "bco", perhaps with terms on logits, which see the desirable completions
            only, such as "kto + 0.1*cross_entropy"; or such a module.
        reference_cache: Folder of the reference's log-probabilities; None takes the user's cache.
        **kwargs: As for TRL (`callbacks`, `optimizers`, `quantization_config`, `peft_config`).

    Raises:
        ObjectiveInputError: For a loss that cannot be read or does not fit.
        ConfigurationError: For settings that would do nothing, one row per optimiser step, or a stale reference.
        DataError: For data without completions and labels.
        ModelError: For a model whose output embedding is no linear map.
    """

    family = "unpaired"
    settings = KTO
    own_loss_type = "kto"
    columns = (("completion", "label"), ("chosen", "rejected"))
    token_columns = ("prompt_ids", "completion_ids", "KL_completion_ids")
    tokens = ("prompt_ids", "completion_ids", "label")

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        loss: str | LossModule = "kto",
        reference_cache: str | Path | None = None,
        **kwargs: Any,
    ):
        self._step: list[Any] | None = None
        self._step_kl: Tensor | None = None
        data = (data_collator, train_dataset, eval_dataset, processing_class)
        super().__init__(model, ref_model, args, *data, loss=loss, reference_cache=reference_cache, **kwargs)
        self._warn_of_order()

    def _init_trl(self, args: Any, **kwargs: Any) -> None:
        args.loss_type = WITHOUT_KL
        super()._init_trl(args, **kwargs)
        self._trainer.args.loss_type = self.loss_type = self.own_loss_type

    def _default_args(self, model: Any) -> Any:
        return KTOConfig(output_dir=f"{model_name(model)}-KTO")

    @property
    def _needs_kl(self) -> bool:
        return any("kl" in term.needed for term in self._terms)

    @property
    def _runs_kl(self) -> bool:
        """Whether the loss keeps the divergence itself."""
        return self._needs_kl and all(term.hyperparameters.get("running_kl") for term in self._terms)

    def _check_args(self, args: Any) -> None:
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        if rows == 1 and self._needs_kl and not self._runs_kl:
            raise ConfigurationError(
                f"`per_device_train_batch_size` must be > 1 for '{self.loss}', got 1: one row gives no estimate of the "
                f"divergence; take more rows per optimiser step, or loss='kto(running_kl=True)'."
            )

    def _warn_of_order(self) -> None:
        """Rows that come sorted train one kind after the other."""
        labels = torch.tensor(self.train_dataset["label"]) if isinstance(self.train_dataset, Dataset) else None
        if labels is None or self.args.train_sampling_strategy != "sequential" or len(labels) < 20:
            return
        good = labels.float().mean().item()
        changes, expected = int((labels[1:] != labels[:-1]).sum()), 2 * good * (1 - good) * (len(labels) - 1)
        if changes < 0.2 * expected:
            warnings.warn(
                f"The training rows come sorted: desirable and undesirable ones change {changes} times where a mixed "
                f"order has {expected:.0f}, and train_sampling_strategy='sequential' (TRL's default for KTO) keeps it; "
                f"'random' works here.",
                LossmithWarning,
                stacklevel=3,
            )

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """TRL's, with the completion of another row beside each where the loss reads a divergence."""
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if not isinstance(dataset, Dataset):
            raise ConfigurationError(
                f"The {dataset_name} dataset must be a datasets.Dataset, got {type(dataset).__name__}: '{self.loss}' "
                f"needs reference log-probabilities of every row before training."
            )
        if not self._needs_kl:
            return dataset
        if len(dataset) < 2:
            raise DataError(f"The {dataset_name} dataset must have two rows at least, to mismatch completions.")
        others = dataset.select(partners(len(dataset), args.seed).tolist()).select_columns(["completion_ids"])
        others = others.rename_column("completion_ids", "KL_completion_ids")
        dataset = dataset.remove_columns([c for c in others.column_names if c in dataset.column_names])
        return concatenate_datasets([dataset, others], axis=1)

    def _completions(self, inputs: Mapping[str, Any]) -> Completions:
        return singles(inputs)

    def _given(self, logps: Tensor, batch: Completions, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        device = logps.device
        reference, desirable = inputs["ref_logps"].to(device), inputs["label"].bool().to(device)
        return {"logps": logps, "ref_logps": reference, "desirable": desirable, "valid": batch.lengths > 0}

    def _rows(self, given: Mapping[str, Tensor], scored: Scored, batch: Completions) -> dict[str, Tensor]:
        rows = {name: given[name].detach() for name in ("logps", "ref_logps", "desirable")}
        return rows | {"lengths": batch.lengths, "entropy": scored.entropy}

    def _sums(self, rows: Rows) -> Sums:
        sums = completion_sums(rows, self.reward)
        return sums | _kl_sums(rows["kl"], rows["kl_counts"]) if "kl" in rows else sums

    def _inputs_of(self, rows: Rows) -> dict[str, Tensor]:
        given = {name: rows[name] for name in ("logps", "ref_logps", "desirable")} | {"valid": rows["lengths"] > 0}
        return given | ({"kl": _counted(rows["kl"], rows["kl_counts"])} if "kl" in rows else {})

    # The divergence.

    def _begin_step(self, samples: list[Any]) -> None:
        self._step, self._step_kl = samples, None

    def _extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Log-ratios of the mismatched completions of the whole optimiser step, on all ranks."""
        if not self._needs_kl:
            return {}
        begun = self._step_kl is None
        if not model.training or (begun and self._step is None):
            return {"kl": _counted(*self._log_ratios(model, inputs))}
        if self._step_kl is None:
            found = [self._log_ratios(model, self._prepare_inputs(batch)) for batch in self._step or ()]
            values, counts = (torch.cat(part) for part in zip(*found, strict=True))
            self._logbook.add(_kl_sums(values, counts))
            # Held until the next step begins; the batches are not.
            self._step, self._step_kl = None, _counted(gather_rows(values), gather_rows(counts.long()).bool())
        # A loss that keeps the divergence itself takes it in once per step.
        return {"kl": self._step_kl} if begun or not self._runs_kl else {}

    def _evaluated_extra(self, model: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        if not self._needs_kl:
            return {}
        values, counts = self._log_ratios(model, inputs)
        return {"kl": values, "kl_counts": counts}

    def _log_ratios(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-ratio of each mismatched completion, and whether it has a token."""
        labels = unshifted_labels(inputs, "KL_")
        given = {"input_ids": inputs["KL_input_ids"], "attention_mask": inputs["KL_attention_mask"], "labels": labels}
        with self.accelerator.autocast():
            logps = completion_logps(self._head, model, given)
        return logps - inputs["ref_KL_logps"].to(logps.device), (labels[:, 1:] != -100).any(1)

    def reference_logps(self, logps: Callable[[dict[str, Any]], Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Columns of the reference for a collated batch.

        Args:
            logps: From the model's inputs and labels to log-probabilities [rows].
            batch: Made by the collator.
        """
        found = {}
        for prefix, column in (("", "ref_logps"), ("KL_", "ref_KL_logps")):
            if f"{prefix}input_ids" in batch:
                given = {name: batch[f"{prefix}{name}"] for name in ("input_ids", "attention_mask")}
                found[column] = logps({**given, "labels": unshifted_labels(batch, prefix)})
        return found


def partners(rows: int, seed: int) -> Int[Tensor, " rows"]:
    """For each row another one whose completion it is mismatched with: the next one of a seeded order.

    Args:
        rows: Number of rows, >= 2.
        seed: Of the order.

    Example:
        >>> chosen = partners(5, seed=0)
        >>> sorted(chosen.tolist()), bool((chosen == torch.arange(5)).any())
        ([0, 1, 2, 3, 4], False)
    """
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    found = torch.empty_like(order)
    found[order] = order.roll(-1)
    return found


def _kl_sums(values: Tensor, counts: Tensor) -> Sums:
    return {"kl": (wide(values[counts]).sum(), counts.sum())}


def _counted(values: Tensor, counts: Tensor) -> Tensor:
    """Log-ratios that count; a 0 where none does."""
    found = values[counts]
    return found if len(found) else values.new_zeros(1)
