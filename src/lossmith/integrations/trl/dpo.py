"""TRL's DPO trainer with any preference objective, alone or with terms on the chosen completions."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from lossmith._typing import Tensor
from lossmith.integrations.trl.meters import Rows, Sums, pair_sums
from lossmith.integrations.trl.preference import PreferenceMixin
from lossmith.integrations.trl.scoring import Completions, Scored, pairs, unshifted_labels
from lossmith.integrations.trl.settings import DPO, model_name
from lossmith.nn import LossModule


class DPOTrainer(PreferenceMixin, TRLDPOTrainer):
    """`trl.DPOTrainer` with a lossmith loss.

    Args:
        model: As for TRL: a name, a folder, a causal language model or a PEFT model.
        ref_model: A reference of its own; None takes the model as it is before training (adapters off, or a copy of a
            trained adapter), without a second model in memory. Only losses that read a reference have it computed.
        args: `trl.DPOConfig`. Settings of TRL's losses are refused; `precompute_ref_batch_size` is heeded.
        data_collator: As for TRL.
        train_dataset: With columns `chosen`, `rejected` and, unless they share a beginning, `prompt`; or with token
            ids, which are taken as they are: `prompt_ids`, `chosen_ids`, `rejected_ids`.
        eval_dataset: As for TRL; evaluation values do not depend on `per_device_eval_batch_size`.
        processing_class: A tokenizer.
        loss: A preference objective, perhaps with terms on logits, which see the chosen completions only, such as
            "lrml(beta=0.05) + 0.1*cross_entropy"; or such a module.
        reference_cache: Folder of the reference's log-probabilities; None takes the user's cache.
        **kwargs: As for TRL (`callbacks`, `optimizers`, `quantization_config`, `peft_config`).

    Raises:
        ObjectiveInputError: For a loss that cannot be read or does not fit.
        ConfigurationError: For settings that would do nothing, or a stale reference.
        DataError: For data without pairs.
        ModelError: For a model whose output embedding is no linear map.
    """

    family = "preference"
    settings = DPO
    own_loss_type = "sigmoid"
    columns = (("chosen", "rejected"),)
    token_columns = tokens = ("prompt_ids", "chosen_ids", "rejected_ids")

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
        loss: str | LossModule = "dpo",
        reference_cache: str | Path | None = None,
        **kwargs: Any,
    ):
        data = (data_collator, train_dataset, eval_dataset, processing_class)
        super().__init__(model, ref_model, args, *data, loss=loss, reference_cache=reference_cache, **kwargs)

    def _default_args(self, model: Any) -> Any:
        return DPOConfig(output_dir=f"{model_name(model)}-DPO")

    def _completions(self, inputs: Mapping[str, Any]) -> Completions:
        return pairs(inputs)

    def _given(self, logps: Tensor, batch: Completions, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        chosen, rejected = logps.chunk(2)
        chosen_lengths, rejected_lengths = batch.lengths.chunk(2)
        given = {"chosen_logps": chosen, "rejected_logps": rejected}
        if self.needs_reference:
            given |= {n: inputs[n].to(logps.device) for n in ("ref_chosen_logps", "ref_rejected_logps")}
        return given | {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}

    def _rows(self, given: Mapping[str, Tensor], scored: Scored, batch: Completions) -> dict[str, Tensor]:
        chosen, rejected = scored.entropy.chunk(2)
        return {name: value.detach() for name, value in given.items()} | {"entropy": chosen + rejected}

    def _sums(self, rows: Rows) -> Sums:
        return pair_sums(rows, self.reward)

    def _inputs_of(self, rows: Rows) -> dict[str, Tensor]:
        return {name: value for name, value in rows.items() if name in self._terms[0].inputs}

    def reference_logps(self, logps: Callable[[dict[str, Any]], Tensor], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Columns of the reference for a collated batch.

        Args:
            logps: From the model's inputs and labels to log-probabilities [rows].
            batch: Made by the collator.
        """
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        chosen, rejected = logps({**given, "labels": unshifted_labels(batch)}).chunk(2)
        return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
