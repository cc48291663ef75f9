"""How a study of preferences is opened: all that its runs share is loaded, and mistakes are found before training."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lossmith.errors import ConfigurationError, DataError, LossmithWarning
from lossmith.integrations.causal_lm.loading import load_causal_lm
from lossmith.integrations.models import ResolvedModel, resolve_model, token_limit
from lossmith.studies.answer_kinds import (
    PAIRS,
    RATED,
    AnswerKind,
    AnyEncoded,
    AnyItem,
    AnyTask,
    check_both_kinds,
    kind_of,
    swapped_by_reward,
)
from lossmith.studies.answer_sampling import AnswerSampling, open_sampling
from lossmith.studies.preference import PreferenceSetting, Scored
from lossmith.studies.preference_config import AnswerFields
from lossmith.studies.preference_training import no_pairs, trained_by
from lossmith.studies.run import build_loss, pick_device
from lossmith.tasks import draw_problems

SUBSET_SEED = 20240
"""Seed of the test pairs, which are the same for all blocks."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The model before training and its reference."""

    model: ResolvedModel
    network: Any
    tokenizer: Any
    reference: ResolvedModel | None
    """A reference of its own, where there is one."""
    reference_network: Any
    """What scores as the reference: `network` where there is none of its own."""
    device: torch.device
    limit: int | None
    """Most tokens that the model reads."""


def open_preference(config: AnswerFields) -> PreferenceSetting:
    """Load what all runs share, score the test before training, and find every mistake that can be found by then.

    Warns of what the data and the encoding noticed, such as prompts that were cut.

    Raises:
        LossmithError: If the task, model, reference, device, rows or a loss cannot be used.
    """
    kind = kind_of(config)
    _check_losses(config, kind)
    task = kind.load(config.task, data=config.data, test_fraction=config.test_fraction, split_seed=config.split_seed)
    _check_counts(config, kind, task)
    loaded = _load(config)
    given = _tested(config, kind, task)
    sets = {name: kind.encode(config, loaded.tokenizer, items, name) for name, items in given.items()}
    sampling = _sampling(config, loaded, given["test"], sets["test"])
    shown = _shown(config, given["test"], sets["test"], loaded.limit)
    found = {name: _scored(config, kind, rows, loaded, name) for name, rows in sets.items()}
    notices = (*task.warnings, *_coarse_weights(config), *_noticed(kind, sets, found["test"], sampling, given["test"]))
    for notice in notices:
        warnings.warn(notice, LossmithWarning, stacklevel=2)
    return PreferenceSetting(
        config=config,
        kind=kind,
        model=loaded.model,
        device=loaded.device,
        task=task,
        tokenizer=loaded.tokenizer,
        reference=loaded.reference,
        validation=found["validation"],
        test=found["test"],
        shown=shown,
        sampling=sampling,
        measured=kind.measured(task),
        notices=notices,
    )


def tested_on(setting: PreferenceSetting, items: Sequence[AnyItem], *, sampling_seed: int) -> PreferenceSetting:
    """The same study, tested on other rows, and on answers to their prompts that are sampled with another seed.

    Training rows that were encoded are shared with `setting`.

    Raises:
        LossmithError: If the rows leave nothing to test on, or a model cannot be used.
    """
    config = setting.config.model_copy(update={"sampling_seed": sampling_seed})
    loaded = _load(config)
    encoded = setting.kind.encode(config, loaded.tokenizer, items, "test")
    own = replace(
        setting,
        config=config,
        test=_scored(config, setting.kind, encoded, loaded, "test"),
        shown=_shown(config, items, encoded, loaded.limit),
        sampling=_sampling(config, loaded, items, encoded),
    )
    # `made` depends on the training rows alone, which are the same; encoding all of them takes seconds.
    object.__setattr__(own, "made", setting.made)
    return own


def _check_losses(config: AnswerFields, kind: AnswerKind) -> None:
    for text in config.all_losses:
        if trained_by(text) not in kind.trained:
            raise ConfigurationError(no_pairs(text))
        build_loss(text, 0, {})


def _coarse_weights(config: AnswerFields) -> tuple[str, ...]:
    """What happens to small updates of weights that have no finer copy."""
    if config.lora is not None or config.weights != "bfloat16":
        return ()
    return (
        "All weights are trained in bfloat16, whose step is 1/256 of a weight: updates below half of it are lost. Take "
        "`weights=float32 precision=bf16`, which keeps a fine copy, or `lora`.",
    )


def _check_counts(config: AnswerFields, kind: AnswerKind, task: AnyTask) -> None:
    for split, wanted, there in (
        ("train", config.train_examples, len(task.train)),
        ("test", config.test_examples, len(task.test)),
    ):
        if wanted is not None and wanted > there:
            cut = Path(config.task).is_file() or any("test rows were cut" in warning for warning in task.warnings)
            other = f", or change `test_fraction`, which is {config.test_fraction:g} of the prompts" if cut else ""
            raise DataError(
                f"`{split}_examples` is {wanted} and '{task.name}' has {there} {kind.rows} to {split}"
                f"{'' if split == 'test' else ' on'}: lower it or leave it out{other}."
            )


def _load(config: AnswerFields) -> Networks:
    """The model and its reference, with room for the rows.

    Raises:
        ConfigurationError: If there is no such device, no room, or the reference has other tokens.
        ModelError: If a model cannot be used.
    """
    device, model = pick_device(config.device), resolve_model(config.model)
    weights = torch.bfloat16 if config.weights == "bfloat16" else torch.float32
    network, tokenizer = load_causal_lm(model, device=device, dtype=weights)
    limit = token_limit(network, tokenizer)
    if limit is not None and config.max_length > limit:
        raise ConfigurationError(
            f"`max_length` must be <= {limit}, the most that the model reads, got {config.max_length}."
        )
    reference = None if config.reference is None else resolve_model(config.reference)
    return Networks(
        model=model,
        network=network,
        tokenizer=tokenizer,
        reference=reference,
        reference_network=network if reference is None else _other_reference(reference, tokenizer, weights, device),
        device=device,
        limit=limit,
    )


def _sampling(
    config: AnswerFields, loaded: Networks, items: Sequence[AnyItem], encoded: AnyEncoded
) -> AnswerSampling | None:
    return open_sampling(
        config,
        loaded.tokenizer,
        items,
        encoded,
        start=loaded.model,
        reference=loaded.reference,
        device=loaded.device,
        limit=loaded.limit,
    )


def _noticed(
    kind: AnswerKind, sets: Mapping[str, AnyEncoded], test: Scored, sampling: AnswerSampling | None, items: Any
) -> tuple[str, ...]:
    """What the encoding cost, and what the reference and the reward say of the data."""
    said = [kind.sentence(encoded, name) for name, encoded in sets.items()]
    reward = None if sampling is None or kind is not PAIRS else sampling.reward
    return (
        *(sentence for sentence in said if sentence),
        *kind.noticed(test.reference),
        *(() if reward is None else swapped_by_reward(reward, items)),
    )


def _tested(config: AnswerFields, kind: AnswerKind, task: AnyTask) -> dict[str, Any]:
    """Items of the test and of the learning curve, the same for all blocks.

    Raises:
        DataError: If answers are rated and one kind is not drawn for the test.
    """
    given: dict[str, Any] = {"test": task.test, "validation": task.validation[: config.curve_examples]}
    if config.test_examples is not None:
        given["test"] = draw_problems(task.test, config.test_examples, seed=SUBSET_SEED)
    if kind is RATED:
        check_both_kinds(given["test"], "test")
        if len({row.label for row in given["validation"]}) < 2:
            # Nothing can be told apart on the way.
            given["validation"] = ()
    return given


def _shown(
    config: AnswerFields, items: Sequence[AnyItem], encoded: AnyEncoded, limit: int | None
) -> tuple[tuple[AnyItem, list[int]], ...]:
    """Test rows at even distances, with prompts that leave room for an answer."""
    if limit is not None and config.shown_answers and config.shown_tokens >= limit:
        raise ConfigurationError(
            f"`shown_tokens` must be < {limit}, the most that the model reads, got {config.shown_tokens}."
        )
    step = max(len(encoded.rows) // max(config.shown_answers, 1), 1)
    chosen = range(0, len(encoded.rows), step)[: config.shown_answers]
    room = None if limit is None else limit - config.shown_tokens
    return tuple(
        (items[encoded.places[row]], encoded.rows[row].prompt_ids[-room if room else None :]) for row in chosen
    )


def _scored(config: AnswerFields, kind: AnswerKind, encoded: AnyEncoded, loaded: Networks, name: str) -> Scored:
    start, reference = (
        kind.stored(model, loaded.tokenizer, encoded.rows, batch_size=config.eval_batch_size, name=name)
        for model in (loaded.network, loaded.reference_network)
    )
    return Scored(encoded=encoded, start=start, reference=reference)


def _other_reference(reference: ResolvedModel, tokenizer: Any, weights: torch.dtype, device: torch.device) -> Any:
    """A reference of its own, whose tokens are those of the model.

    Raises:
        ConfigurationError: If they are not.
    """
    other, theirs = load_causal_lm(reference, device=device, dtype=weights)
    mine, known = tokenizer.get_vocab(), theirs.get_vocab()
    if mine != known:
        differing = sorted(token for token in mine.keys() | known.keys() if mine.get(token) != known.get(token))
        raise ConfigurationError(
            f"`reference` {reference.name} has another tokenizer than the model: {len(differing):,} tokens differ, the "
            f"first is {differing[0]!r}, and log-probabilities of different tokens cannot be compared: give a model "
            f"with the same tokenizer, or leave `reference` out."
        )
    return other
