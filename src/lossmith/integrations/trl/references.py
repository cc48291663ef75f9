"""Reference log-probabilities as columns of TRL's tokenised data sets, computed once, before training."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback

from lossmith._typing import Tensor
from lossmith.errors import ConfigurationError
from lossmith.integrations.fingerprints import Fingerprint, fingerprint_rows
from lossmith.integrations.lm_head import HeadLoss
from lossmith.integrations.reference import ReferenceCache, adapter_off, completion_logps


class References:
    """The reference of one trainer: the model that it starts from, or one that the user gives.

    Args:
        trainer: The trainer, whose model, accelerator and collator are there once TRL asks for the first data set.
        folder: Where values are kept, as for `ReferenceCache`.
    """

    def __init__(self, trainer: Any, folder: str | Path | None):
        self.trainer = trainer
        self.cache = ReferenceCache(folder)
        self.ready = False
        """Whether the trainer is made; from then on data sets come through `evaluate`."""
        self._known: Fingerprint | None = None

    @contextmanager
    def without_second_model(self, kwargs: dict[str, Any], ref_model: object) -> Iterator[dict[str, Any]]:
        """TRL's settings for its `__init__`, in which it makes no model of its own for the reference.

        Under FSDP TRL makes one nevertheless, since it would compute with it after sharding; ours is computed before.
        """
        if ref_model is not None:
            yield kwargs
            return
        hook = _Unsharded(self.trainer)
        yield {**kwargs, "callbacks": [*(kwargs.get("callbacks") or ()), hook]}
        self.trainer.remove_callback(hook)
        self.trainer.is_fsdp_enabled = hook.fsdp

    def added(self, dataset: Any, name: str, batch_size: int) -> Any:
        """The data set with the reference's log-probabilities as columns.

        Raises:
            ConfigurationError: For a streaming data set, or a stale or foreign cache.
        """
        if not isinstance(dataset, Dataset):
            raise ConfigurationError(
                f"The {name} dataset must be a datasets.Dataset, got {type(dataset).__name__}: '{self.trainer.loss}' "
                f"needs reference log-probabilities of every row before training."
            )
        columns = [column for column in self.trainer.token_columns if column in dataset.column_names]
        pool, places = self._pool(dataset, columns, name)
        fingerprint = self._fingerprint(pool, columns)
        file = re.sub(r"[^\w.-]", "_", name)
        if self.ready:
            # Every data set that `evaluate` is given has the same name.
            file = f"{file}-{fingerprint.data[:12]}"
        tokens = pool.select_columns([*columns, *({"label"} & set(pool.column_names))])
        with self._model() as (model, head):

            def compute(rows: list[int]) -> Mapping[str, Tensor]:
                batch = self.trainer.data_collator([tokens[row] for row in rows])
                return self.trainer.reference_logps(lambda given: self._logps(head, model, given), batch)

            found = self.cache.load_or_compute(
                file,
                fingerprint,
                len(pool),
                compute,
                # One by one: what a row's value is must not depend, to the last bit, on which draw came first.
                rows_per_call=batch_size if places is None else 1,
                rows=places,
            )
        dataset = dataset.remove_columns([column for column in found if column in dataset.column_names])
        for column, values in found.items():
            dataset = dataset.add_column(column, (values if places is None else values[places]).tolist())
        return dataset

    def _pool(self, dataset: Any, columns: list[str], name: str) -> tuple[Any, list[int] | None]:
        """The rows of which the data set is a draw, and its places there; itself where it is none.

        All draws from one pool share what was computed. Mismatched completions are the draw's own, so such rows are
        in no pool.
        """
        given = getattr(self.trainer, "reference_pool", None)
        if given is None or self.ready or name != "train" or not {*columns} <= {*given[0].column_names}:
            return dataset, None
        pool, places = given[0], [int(place) for place in given[1]]
        drawn = pool.select(places).select_columns(columns)
        assert fingerprint_rows(drawn, columns) == fingerprint_rows(dataset.select_columns(columns), columns)
        return pool, places

    def _logps(self, head: HeadLoss, model: Any, given: dict[str, Any]) -> Tensor:
        device = next(model.parameters()).device
        moved = {name: value.to(device) for name, value in given.items()}
        with self.trainer.accelerator.autocast():
            return completion_logps(head, model, moved)

    def _fingerprint(self, dataset: Any, columns: list[str]) -> Fingerprint:
        if self._known is not None:
            return dataclasses.replace(self._known, data=fingerprint_rows(dataset.select_columns(columns), columns))
        trainer, model = self.trainer, self._reference
        args = trainer.args
        settings = {
            "max_length": args.max_length,
            "truncation_mode": getattr(args, "truncation_mode", "keep_start"),
            "dtype": str(model.dtype),
            "mixed_precision": str(trainer.accelerator.mixed_precision),
            "attention": str(getattr(model.config, "_attn_implementation", None)),
        }
        self._known = Fingerprint.of(
            model, trainer.processing_class, dataset.select_columns(columns), columns=columns, settings=settings
        )
        return self._known

    @property
    def _reference(self) -> Any:
        given = self.trainer.ref_model
        return self.trainer.accelerator.unwrap_model(self.trainer.model if given is None else given)

    @contextmanager
    def _model(self) -> Iterator[tuple[Any, HeadLoss]]:
        """The reference, on the device of training."""
        model = self._reference
        before, device = next(model.parameters()).device, self.trainer.accelerator.device
        # FSDP and DeepSpeed leave the whole model on the CPU until training starts.
        moves = before.type == "cpu" and device.type != "cpu"
        try:
            with adapter_off(model.to(device) if moves else model) as reference:
                yield reference, HeadLoss(reference)
        finally:
            if moves:
                model.to(before)


class _Unsharded(TrainerCallback):
    """Hides FSDP from what TRL does after transformers' `Trainer.__init__`."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.fsdp = False

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.fsdp, self.trainer.is_fsdp_enabled = self.trainer.is_fsdp_enabled, False
