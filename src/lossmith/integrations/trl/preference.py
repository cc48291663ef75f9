"""What lossmith's DPO and KTO trainers share: the loss in the forward, normalisation, logs, evaluation, state."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from lossmith._typing import Tensor
from lossmith.engines import LinearLogits, world_size
from lossmith.errors import ConfigurationError
from lossmith.integrations.transformers.figures import logs_next
from lossmith.integrations.transformers.items import divisors, item_kinds
from lossmith.integrations.transformers.state import LossState
from lossmith.integrations.trl.evaluation import WholeSetMixin
from lossmith.integrations.trl.logbook import Logbook
from lossmith.integrations.trl.meters import Reward
from lossmith.integrations.trl.references import References
from lossmith.integrations.trl.scoring import Scored, gathered
from lossmith.integrations.trl.settings import (
    Setting,
    beta_of,
    check_columns,
    check_processing,
    check_reference,
    check_settings,
    each_dataset,
    read_loss,
    terms_of,
)
from lossmith.nn import LossModule


class PreferenceMixin(LossState, WholeSetMixin):
    """Puts a lossmith loss into a preference trainer of TRL: `class DPOTrainer(PreferenceMixin, trl.DPOTrainer)`.

    A class that uses it says which losses, settings and columns it takes, and how a batch becomes the inputs of a loss.
    """

    loss_is_scaled_for_ga = True
    """Read by transformers' Trainer: every micro-batch is divided by the items of the whole accumulated batch."""

    family: ClassVar[str]
    settings: ClassVar[Mapping[str, Setting]]
    own_loss_type: ClassVar[str]
    columns: ClassVar[tuple[tuple[str, ...], ...]]
    token_columns: ClassVar[tuple[str, ...]]
    tokens: ClassVar[tuple[str, ...]]
    """Columns of rows that are token ids already."""

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
        loss: str | LossModule,
        reference_cache: str | Path | None = None,
        **kwargs: Any,
    ):
        self.loss = read_loss(loss, family=self.family, trainer=type(self).__name__)
        # A copy: a configuration that serves several trainers stays what it was.
        args = copy.copy(args) if args is not None else self._default_args(model)
        self._check(args, processing_class, train_dataset, eval_dataset, kwargs)
        self._read_terms()
        self._check_args(args)
        check_reference(ref_model, self.loss, args, needed=self.needs_reference)
        self._references = References(self, reference_cache)
        # TRL loads a second model for the reference unless it is told that everything comes before training.
        args.precompute_ref_log_probs = True
        with self._references.without_second_model(kwargs, ref_model) as kwargs:
            self._init_trl(
                args,
                model=model,
                ref_model=ref_model,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        if not any(parameter.requires_grad for parameter in self._trainer.model.parameters()):
            raise ConfigurationError(
                f"No parameter of {type(self._trainer.model).__name__} asks for a gradient: unfreeze some, or add an "
                f"adapter (LoRA)."
            )
        self.precompute_ref_logps = self._trainer.args.precompute_ref_log_probs = self.needs_reference
        # transformers before 5.22 divides the loss unless it believes that the model was told the number of items.
        self.model_accepts_loss_kwargs = True
        # Before 5.6 it also lets accelerate divide every loss by the number of micro-batches.
        self._trainer.accelerator.gradient_accumulation_steps = 1
        self.loss = self.loss.to(self._trainer.args.device)
        self._references.ready = True

    def _check(self, args: Any, processing_class: Any, train: Any, evaluation: Any, kwargs: dict[str, Any]) -> None:
        """Everything that can be refused before a model is loaded."""
        name = type(self).__name__
        check_settings(args, self.loss, self.settings, loss_type=self.own_loss_type)
        check_processing(processing_class, kwargs.get("compute_metrics"), name)
        for key, dataset in (*each_dataset(train, "train"), *each_dataset(evaluation, "eval")):
            if not self._is_tokenised(dataset):
                check_columns(dataset, key, self.columns, name)

    def _read_terms(self) -> None:
        """What follows from the loss alone."""
        self._terms = [term for term in terms_of(self.loss) if term.record.family == self.family]
        self.needs_reference = any(name.startswith("ref_") for name in self.loss.required)
        # Where completions are coupled over ranks every rank holds all of them.
        self._gathers = world_size() > 1 and any(term.batch_coupled for term in self._terms)
        self._kinds = [
            replace(kind, gather=self._gathers) if kind.item in ("pair", "completion") else kind
            for kind in item_kinds(self.loss)
        ]
        self.reward = Reward(
            beta=1.0 if (beta := beta_of(self.loss)) is None else beta,
            per_token={"chosen_lengths", "rejected_lengths"} <= set(self._terms[0].needed),
            relative=self.needs_reference,
        )
        self._micro_batches = 1
        self._logbook = Logbook()

    def _init_trl(self, args: Any, **kwargs: Any) -> None:
        super().__init__(args=args, **kwargs)  # pyright: ignore

    def _default_args(self, model: Any) -> Any:
        raise NotImplementedError

    def _check_args(self, args: Any) -> None:
        """Refuse further settings that do not go with the loss."""

    def _extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Further inputs of the loss, not one per row."""
        return {}

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of one optimiser step, and the items of all of them on all ranks by kind."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)  # pyright: ignore
        self._begin_step(samples)
        self._micro_batches = max(len(samples), 1)
        return samples, self._num_items(samples, device) if samples else None

    def _begin_step(self, samples: list[Any]) -> None:
        pass

    def _num_items(self, samples: list[Any], device: torch.device) -> dict[str, float]:
        counts = [self._completions(sample).counts(self._kinds) for sample in samples]
        return divisors(self._kinds, counts, ranks=world_size(), add_up=self._over_ranks, device=device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one micro-batch, divided by the items of the whole accumulated batch."""
        self._tell_progress()
        self.loss.train(model.training)
        batch, extra = self._completions(inputs), self._extra(model, inputs)
        logged: dict[str, Tensor] = {}

        def compute(linear: LinearLogits) -> Tensor:
            here = batch.to(linear.device)
            scored = Scored.of(linear, here, self.loss)
            given = self._given(scored.logps, here, inputs)
            logged.update(self._rows(given, scored, here))
            own = {name: value for name, value in given.items() if name in self.loss.inputs}
            asked: dict[str, Any] = {**(gathered(own) if self._gathers else own), **extra}
            if "logits" in self.loss.inputs:
                asked |= {"logits": scored.source, "labels": here.good}
            parts = self.loss.breakdown(**asked, num_items=num_items_in_batch)
            if len(parts) > 1 and model.training and logs_next(self._trainer.args, self._trainer.state):
                self._logbook.note_shares(parts, linear.hidden)
            return torch.stack(list(parts.values())).sum()

        outputs = self._head(model, self._model_inputs(inputs), compute)
        loss = outputs.loss
        if self._trainer.aux_loss_enabled:
            # A mixture of experts balances its load in every micro-batch.
            balance = self._trainer.router_aux_loss_coef * outputs.aux_loss
            loss = loss + balance / (self._micro_batches if model.training else 1)
        if model.training:
            self._note(logged)
            self._logbook.see(inputs["attention_mask"].sum())
        return (loss, outputs) if return_outputs else loss

    def _note(self, rows: Mapping[str, Tensor]) -> None:
        """Take what a micro-batch of training says into the log."""
        self._logbook.add(self._sums(rows))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log with the means since the last one, over all pairs, micro-batches and ranks."""
        if "loss" in logs:
            logs.update(self._logbook.read(self._over_ranks))
        super().log(logs, start_time)  # pyright: ignore

    # Data and reference, called by TRL before training and by `evaluate` with a data set of its own.

    def _is_tokenised(self, dataset: Any) -> bool:
        """Whether rows come as token ids, prompt and completion apart, and are taken as they are."""
        return set(self.tokens) <= set(getattr(dataset, "column_names", None) or ())

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if self._is_tokenised(dataset):
            return dataset
        check_columns(dataset, dataset_name, self.columns, type(self).__name__)
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)  # pyright: ignore

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return self._references.added(dataset, name, batch_size) if self.needs_reference else dataset
