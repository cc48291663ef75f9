"""TRL's SFT trainer with any token or region objective."""

from typing import Any

import torch
from torch import nn
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer as TRLSFTTrainer

from lossmith.errors import ConfigurationError
from lossmith.integrations.transformers import LossMixin
from lossmith.integrations.transformers.families import check_families
from lossmith.integrations.trl.settings import check_columns, each_dataset, model_name
from lossmith.nn import LossModule

PLAIN = (None, "nll", "chunked_nll")
"""Values of TRL's `loss_type` that choose how plain cross-entropy is computed, which differ between its versions."""


class SFTTrainer(LossMixin, TRLSFTTrainer):
    """`trl.SFTTrainer` with a lossmith loss, computed at the output embedding; see `LossMixin` for its arguments.

    Packing (`packing=True`) and padding-free batches are exact: no token is predicted from another text, and
    `average="sequence"` and `region="sequence"` see the texts that were packed, not the rows.

    Args:
        model: As for TRL.
        args: `trl.SFTConfig`; settings of TRL's own losses are refused.
        data_collator: As for TRL.
        train_dataset: As for TRL.
        eval_dataset: As for TRL.
        processing_class: As for TRL.
        loss: A token or region loss, or a sum, such as "0.6*cross_entropy + 0.4*lovasz_softmax".
        **kwargs: As for TRL and `LossMixin`.

    Raises:
        ObjectiveInputError: For a loss that cannot be read.
        ConfigurationError: For a loss or a setting that does not fit.
        DataError: For data without texts.
        ModelError: For a model whose output embedding is no linear map.
    """

    families = ("token", "region")

    def __init__(
        self,
        model: Any,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        loss: str | LossModule = "cross_entropy",
        **kwargs: Any,
    ):
        check_families(loss, self.families, "an SFTTrainer")
        args = SFTConfig(f"{model_name(model)}-SFT") if args is None else args
        # TRL turns plain TrainingArguments into an SFTConfig, with the defaults of what they lack.
        loss_type, text = (getattr(args, name, _default(name)) for name in ("loss_type", "dataset_text_field"))
        if loss_type not in PLAIN:
            raise ConfigurationError(
                f"`loss_type` of SFTConfig would do nothing here, got {loss_type!r}: write loss='{loss_type}'."
            )
        if kwargs.get("formatting_func") is None:
            ways = ((text,), ("messages",), ("conversations",), ("prompt", "completion"))
            for name, dataset in (*each_dataset(train_dataset, "train"), *each_dataset(eval_dataset, "eval")):
                check_columns(dataset, name, (*ways, ("input_ids",)), "SFTTrainer")
        data = (data_collator, train_dataset, eval_dataset, processing_class)
        super().__init__(model, args, *data, loss=loss, **kwargs)
        if self._scopes and data_collator is None:
            raise ConfigurationError(
                f"'{self.loss}' names label scopes, but TRL's collator drops the column `{self._scopes[0]}_mask`: give "
                f"a `data_collator` that keeps it, aligned with `labels`."
            )

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `LossMixin`; TRL logs how many tokens were seen."""
        if model.training:
            mask = inputs.get("attention_mask")
            seen = mask.sum() if mask is not None else torch.tensor(inputs["input_ids"].numel())
            self._total_train_tokens += int(self.add_up(seen.to(self.args.device)))
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return super().compute_loss(model, inputs, *args, **kwargs)


def _default(name: str) -> Any:
    return SFTConfig.__dataclass_fields__[name].default
