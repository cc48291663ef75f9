"""One training on preferences: any loss, in the trainer that has its inputs, everything drawn from the block's seed."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.kto_config import KTOConfig

from lossmith.errors import ConfigurationError, DataError, LossmithWarning
from lossmith.integrations.causal_lm.collator import CompletionCollator
from lossmith.integrations.causal_lm.loading import add_lora, lora_settings, switch_off_dropout
from lossmith.integrations.preference_rows import EncodedPairs, PairRow, Prompt, encode_pairs, pairs_sentence
from lossmith.integrations.rated_rows import EncodedRated, RatedRow, encode_rated, rated_sentence
from lossmith.integrations.trl.study import AnswerTrainer, PairTrainer, SingleTrainer, quiet_making
from lossmith.nn import parse_composition
from lossmith.studies.preference_config import PreferenceFields
from lossmith.studies.run import TRAINING_SHARE, Progress, build_loss, seed_everything, trainer_arguments
from lossmith.tasks.preference import Pair, as_messages, chat
from lossmith.tasks.unpaired import Rated

LOGGED_POINTS = 50
"""Points of the training curves."""

AnyTrainer = PairTrainer | SingleTrainer | AnswerTrainer


def trained_by(text: str) -> str:
    """What a loss compares: "pairs", "singles" (answers one by one), or "answers" where it sees the chosen ones only.

    Raises:
        ConfigurationError: For losses of embeddings, and for sums of paired and unpaired losses.

    Example:
        >>> trained_by("dpo + 0.1*cross_entropy"), trained_by("kto"), trained_by("cross_entropy")
        ('pairs', 'singles', 'answers')
    """
    families = {term.record.family: term.record.name for term in parse_composition(text).terms}
    if "metric" in families:
        raise ConfigurationError(
            f"'{families['metric']}' of '{text}' is a metric loss, which reads embeddings of classes, and pairs of "
            f"answers have none: take a preference loss (`lossmith losses`)."
        )
    if {"preference", "unpaired"} <= set(families):
        raise ConfigurationError(
            f"'{text}' adds '{families['preference']}', which compares the answers of a pair, to "
            f"'{families['unpaired']}', which sees them one by one: no batch serves both, take one of them."
        )
    return "pairs" if "preference" in families else "singles" if "unpaired" in families else "answers"


def make_preference_trainer(
    config: PreferenceFields,
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    *,
    text: str,
    seed: int,
    workspace: Path,
    on_cpu: bool,
    reference_cache: Path | None,
    report: Progress,
    measure: Callable[[int, int], None] | None = None,
    reference: Any = None,
) -> AnyTrainer:
    """The trainer of one run on pairs: `.train()`, then `.model`, `.curves`, `.training_seconds`.

    The block's seed fixes the adapters, the order of the pairs and dropout, the same for every loss. Pairs that were
    cut or left out are told in a warning.

    Args:
        config: How to train.
        model: A causal language model without adapters, which is trained itself; adapters of `config.lora` are put on
            it, and its own dropout is switched off.
        tokenizer: Its tokenizer.
        pairs: What to train on, at least one.
        text: The loss.
        seed: The block.
        workspace: The Trainer's output folder.
        on_cpu: Whether to train on the CPU.
        reference_cache: Folder of the reference's log-probabilities; None takes the user's cache.
        report: Is told the share of the run that is done.
        measure: Called after every optimiser step with (step, planned steps), off the clock.
        reference: Another model that is the reference; None takes `model` as it is now.

    Raises:
        ConfigurationError: For a loss or a setting that does not fit.
        DataError: If no pair is left.
        ModelError: For a model whose output embedding is no linear map.
    """
    encoded = encode_study_pairs(config, tokenizer, pairs, "train")
    if sentence := pairs_sentence(encoded, "train"):
        warnings.warn(sentence, LossmithWarning, stacklevel=2)
    return make_trainer(
        config,
        model,
        tokenizer,
        encoded.rows,
        text=text,
        seed=seed,
        workspace=workspace,
        on_cpu=on_cpu,
        reference_cache=reference_cache,
        report=report,
        measure=measure,
        reference=reference,
    )


def encode_study_pairs(config: PreferenceFields, tokenizer: Any, pairs: Sequence[Pair], split: str) -> EncodedPairs:
    """Pairs as token rows, as the settings of a study say.

    Raises:
        DataError: If there are pairs and none is left.
    """
    rows = [(given_prompt(config, pair), pair.chosen, pair.rejected) for pair in pairs]
    encoded = encode_pairs(tokenizer, rows, max_length=config.max_length, max_prompt_length=config.max_prompt_length)
    if pairs and not encoded.rows:
        raise DataError(f"No {split} pair is left: {pairs_sentence(encoded, split)}")
    return encoded


def encode_study_rated(config: PreferenceFields, tokenizer: Any, answers: Sequence[Rated], split: str) -> EncodedRated:
    """Rated answers as token rows, as the settings of a study say.

    Raises:
        DataError: If there are answers and none is left.
    """
    rows = [(given_prompt(config, row), row.completion, row.label) for row in answers]
    encoded = encode_rated(tokenizer, rows, max_length=config.max_length, max_prompt_length=config.max_prompt_length)
    if answers and not encoded.rows:
        raise DataError(f"No {split} row is left: {rated_sentence(encoded, split)}")
    return encoded


def given_prompt(config: PreferenceFields, pair: Pair | Rated) -> Prompt:
    """The prompt of a row as it is put before the model."""
    if isinstance(pair.prompt, str) and config.prompts == "given":
        return pair.prompt
    return as_messages(chat(pair.prompt))


def make_trainer(
    config: PreferenceFields,
    model: Any,
    tokenizer: Any,
    rows: Sequence[PairRow] | Sequence[RatedRow],
    *,
    text: str,
    seed: int,
    workspace: Path,
    on_cpu: bool,
    reference_cache: Path | None,
    report: Progress,
    measure: Callable[[int, int], None] | None = None,
    reference: Any = None,
    pool: tuple[Sequence[Any], Sequence[int]] | None = None,
) -> AnyTrainer:
    """As `make_preference_trainer`, for token rows of pairs, or of answers that are rated one by one.

    `pool` holds the rows of which these are a draw, and their places there: draws share reference log-probabilities.
    """
    kind = trained_by(text)
    rated = [row for row in rows if isinstance(row, RatedRow)]
    pairs = [row for row in rows if isinstance(row, PairRow)]
    if rated and kind == "pairs":
        raise ConfigurationError(no_pairs(text))
    switch_off_dropout(model)
    # Before the adapters are drawn, so that they are the block's own and the same for every loss.
    seed_everything(seed)
    loss = build_loss(text, seed, {})
    told: dict[str, Any] = {
        "on_step": lambda step, total: report(TRAINING_SHARE * step / max(total, 1)),
        "measure": measure,
        "processing_class": tokenizer,
        "loss": loss,
    }
    with quiet_making():
        # Fine-tuning sees the good answers alone.
        seen = sum(row.label for row in rated) if rated and kind == "answers" else len(rows)
        doubled = kind == "singles" and not rated
        told["args"] = _arguments(
            config, kind, seed=seed, workspace=workspace, on_cpu=on_cpu, rows=seen, doubled=doubled
        )
        if kind == "answers":
            good = [(row.prompt_ids, row.completion_ids) for row in rated if row.label]
            chosen = good or [(row.prompt_ids, row.chosen_ids) for row in pairs]
            return AnswerTrainer(
                model=model if config.lora is None else add_lora(model, **config.lora.model_dump()),
                train_dataset=_answers(chosen),
                data_collator=CompletionCollator(tokenizer.pad_token_id, labels="answer"),
                **told,
            )
        make = PairTrainer if kind == "pairs" else SingleTrainer
        table = _pairs if kind == "pairs" else _rated if rated else _singles
        if pool is not None:
            told["reference_pool"] = table(pool[0]), _doubled(pool[1]) if doubled else pool[1]
        trainer = make(
            model=model,
            ref_model=reference if any(name.startswith("ref_") for name in loss.required) else None,
            train_dataset=table(rows),
            # TRL puts them on itself: of adapters that are there already it would keep a copy.
            peft_config=None if config.lora is None else lora_settings(**config.lora.model_dump()),
            reference_cache=reference_cache,
            group=2 if doubled else 1,
            **told,
        )
    # Its log-probabilities are columns of the rows by now.
    trainer.ref_model = None
    return trainer


def no_pairs(text: str) -> str:
    """Why a loss of pairs cannot be trained on rated answers."""
    return (
        f"'{text}' compares the answers of a pair, and here answers are rated one by one: take an unpaired loss (kto, "
        f"bco), or cross_entropy on the good answers."
    )


def _answers(rows: Sequence[tuple[list[int], list[int]]]) -> list[dict[str, Any]]:
    return [{"input_ids": [*prompt, *answer], "answer_start": len(prompt)} for prompt, answer in rows]


def _doubled(places: Sequence[int]) -> list[int]:
    """Places of both answers of each pair, in `_singles`."""
    return [2 * place + side for place in places for side in range(2)]


def _pairs(rows: Sequence[Any]) -> Dataset:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_dict({name: [getattr(row, name) for row in rows] for name in names})


def _singles(rows: Sequence[Any]) -> Dataset:
    """The answers of each pair one after the other, the desirable one first."""
    return Dataset.from_dict(
        {
            "prompt_ids": [row.prompt_ids for row in rows for _ in range(2)],
            "completion_ids": [ids for row in rows for ids in (row.chosen_ids, row.rejected_ids)],
            "label": [label for _ in rows for label in (True, False)],
        }
    )


def _rated(rows: Sequence[Any]) -> Dataset:
    names = ("prompt_ids", "completion_ids", "label")
    return Dataset.from_dict({name: [getattr(row, name) for row in rows] for name in names})


def _arguments(
    config: PreferenceFields, kind: str, *, seed: int, workspace: Path, on_cpu: bool, rows: int, doubled: bool
) -> Any:
    """The Trainer's arguments; where pairs are seen answer by answer (`doubled`), a step has those of as many pairs."""
    steps = config.epochs * -(-rows // (config.batch_size * config.accumulation))
    further: dict[str, Any] = {
        "logging_strategy": "steps",
        "logging_steps": max(1, steps // LOGGED_POINTS),
        "train_sampling_strategy": "random" if config.order == "shuffled" else "sequential",
    }
    if kind != "answers":
        further |= {
            "kind": DPOConfig if kind == "pairs" else KTOConfig,
            # Rows are cut already, and LoRA's dropout is as it was set.
            "max_length": None,
            "disable_dropout": False,
            "gradient_checkpointing": False,
            "precompute_ref_batch_size": max(config.eval_batch_size // 2, 1),
        }
    if doubled:
        config = config.model_copy(update={"batch_size": 2 * config.batch_size})
    return trainer_arguments(config, seed=seed, workspace=workspace, on_cpu=on_cpu, steps=steps, **further)
