"""Rungs by name: `toy`, `tiny`, `small` and `own` of every family, and where winners are confirmed beside them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lossmith._checks import did_you_mean
from lossmith.discovery.rungs.base import Rung
from lossmith.discovery.rungs.small import SmallRung
from lossmith.discovery.rungs.tiny import TinyPreference
from lossmith.discovery.rungs.tiny_tables import TinyMetric, TinyToken
from lossmith.discovery.rungs.toy import ToyPreference
from lossmith.discovery.rungs.toy_tables import ToyMetric, ToyToken
from lossmith.errors import ConfigurationError, LossmithWarning

FAMILIES = ("preference", "token", "metric")
RUNGS = ("toy", "tiny", "small")
TASKS = {"preference": "sentiment", "token": "mr", "metric": "mr"}
"""Family -> what `small` trains on where nothing else is said."""
UNSEEN = {"preference": ("polite_pairs", "persona_pairs"), "token": ("subj", "cr"), "metric": ("subj", "cr")}
"""Family -> tasks of the confirmation; the first that the search does not train on."""
MODELS = {"preference": "embedded:smollm2-135m", "token": "embedded:minilm-l6", "metric": "embedded:minilm-l6"}

CARRIED = (
    *("learning_rate", "weight_decay", "warmup_ratio", "warmup_steps", "schedule", "max_grad_norm", "trainer"),
    *("precision", "weights", "device", "lora", "reference", "batch_size", "accumulation", "eval_batch_size"),
    *("epochs", "order", "pooling", "head", "sampling", "samples_per_class", "proxy_lr_multiplier"),
)
"""Settings of how `small` trains: the confirmation's task is trained on in the same way."""
CARRIED_WITHIN = ("metric", "max_length", "max_prompt_length", "prompts", "mixture")
"""Settings that say the same only in a study of the same kind."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Where a run measures."""

    rungs: tuple[Rung, ...]
    unseen: tuple[Rung, ...]
    not_carried: tuple[str, ...] = ()
    """Settings of the search's `small` that are of its data, and so not of the unseen ground."""

    @property
    def synthetic(self) -> bool:
        """Whether nothing but our own worlds is trained on."""
        return not any(isinstance(rung, SmallRung) for rung in (*self.rungs, *self.unseen))


def make_ladder(
    family: str,
    names: Sequence[str],
    *,
    task: str | None = None,
    model: str | None = None,
    unseen: str | None = None,
    settings: dict[str, Any] | None = None,
    brief: bool = False,
) -> Ladder:
    """The rungs of a run, cheapest first, and the ground that the search never sees.

    Args:
        family: `preference`, `token` or `metric`.
        names: Of `toy`, `tiny`, `small`; each once, in this order.
        task: What `small` trains on: `sentiment`, a set or file of pairs; a set of texts for the other families.
        model: What `small` trains.
        unseen: Task of the confirmation of `small`; None takes a shipped one.
        settings: Further settings of the study of `small`. The unseen ground has those of training too (`CARRIED`);
            a warning names the others.
        brief: Whether `small` trains and tests for half a minute instead of some: for budgets below two hours.

    Raises:
        ConfigurationError: For a family or rung that there is not, or settings without a rung that reads them.
    """
    if family not in FAMILIES:
        raise ConfigurationError(
            f"The family must be one of {', '.join(FAMILIES)}, got '{family}'.{did_you_mean(family, FAMILIES)}"
        )
    for name in names:
        if name not in RUNGS:
            raise ConfigurationError(
                f"`--rungs` must name some of {','.join(RUNGS)}, got '{name}'.{did_you_mean(name, RUNGS)}"
            )
    if not names or list(names) != [name for name in RUNGS if name in names]:
        raise ConfigurationError(
            f"`--rungs` must name each rung once, the cheapest first, as in {','.join(RUNGS)}, got '{','.join(names)}'."
        )
    given = {"task": task, "model": model, "unseen": unseen, **(settings or {})}
    idle = [name for name, value in given.items() if value is not None]
    if idle and "small" not in names:
        raise ConfigurationError(f"`{idle[0]}` is for the rung `small`, and `--rungs` names {','.join(names)}.")
    rungs = tuple(_rung(family, name, task, model, settings or {}, brief) for name in names)
    last = names[-1]
    if last == "small":
        other = unseen or next(each for each in UNSEEN[family] if each != rungs[-1].ground[0])
        return _with_unseen(family, rungs, other, model, settings or {}, brief)
    return Ladder(rungs=rungs, unseen=(_ELSEWHERE[family][last],))


def _with_unseen(
    family: str, rungs: tuple[Rung, ...], task: str, model: str | None, settings: Mapping[str, Any], brief: bool
) -> Ladder:
    """The ladder with a task beside `small` that is trained on in the same way.

    A loss that won at one learning rate and in one precision is not tried at another: that would be another question.
    """
    name = f"small-{_short(task)}"
    beside, searched = _small(family, name, task, model, {}, brief), rungs[-1]
    assert isinstance(searched, SmallRung)
    known, same = beside.known, beside.kind == searched.kind
    wanted = CARRIED + (CARRIED_WITHIN if same else ())
    carried = {each: value for each, value in settings.items() if each in wanted and each in known}
    left = tuple(each for each in settings if each not in carried)
    if left:
        warnings.warn(
            f"{', '.join(f'`{each}`' for each in left)} {'is' if len(left) == 1 else 'are'} for '{searched.ground[0]}' "
            f"alone: the confirmation on '{task}' has its own.",
            LossmithWarning,
            stacklevel=3,
        )
    return Ladder(rungs=rungs, unseen=(_small(family, name, task, model, carried, brief),), not_carried=left)


def _rung(family: str, name: str, task: str | None, model: str | None, settings: dict[str, Any], brief: bool) -> Rung:
    if name == "small":
        return _small(family, "small", task or TASKS[family], model, settings, brief)
    return _OURS[family][name]


def _small(family: str, name: str, task: str, model: str | None, settings: Mapping[str, Any], brief: bool) -> SmallRung:
    given: dict[str, Any] = {"task": task, "model": model or MODELS[family]}
    seconds = 30.0 if brief else 150.0
    if family != "preference":
        given |= {"max_length": 64, "curve_examples": 0, "batch_size": 20}
        given |= {"metric": "accuracy" if family == "token" else "neighbours_accuracy"}
        given |= {"shots": 10, "test_examples": 200, "epochs": 5} if brief else {"shots": 20, "epochs": 10}
    elif task == "sentiment":
        seconds = 23.0 if brief else seconds
        given |= {"sampling_seeds": 1}
        given |= (
            {"train_prompts": 24, "test_prompts": 16, "max_new_tokens": 16, "answers_per_prompt": 2}
            if brief
            else {"train_prompts": 64, "test_prompts": 48}
        )
    else:
        # At the 1e-4 of the recipes so few steps move no pair to the other side, whatever the loss.
        given |= {"curve_examples": 0, "shown_answers": 0, "epochs": 1, "learning_rate": 1e-3, "batch_size": 4}
        seconds = 31.0 if brief else seconds
        given |= (
            {"train_examples": 24, "test_examples": 32, "max_length": 96}
            if brief
            else {"train_examples": 96, "test_examples": 128, "max_length": 128}
        )
    return SmallRung(name=name, family=family, settings=given | dict(settings), seconds=seconds)


def _short(task: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in task.rsplit("/", 1)[-1])[:40] or "unseen"


_OURS: dict[str, dict[str, Rung]] = {
    "preference": {"toy": ToyPreference(), "tiny": TinyPreference()},
    "token": {"toy": ToyToken(), "tiny": TinyToken()},
    "metric": {"toy": ToyMetric(), "tiny": TinyMetric()},
}
_ELSEWHERE: dict[str, dict[str, Rung]] = {
    "preference": {
        "toy": ToyPreference(name="toy-unseen", skewed=True),
        "tiny": TinyPreference(name="tiny-unseen", task="order"),
    },
    "token": {"toy": ToyToken(name="toy-unseen", lopsided=True), "tiny": TinyToken(name="tiny-unseen", back=2)},
    "metric": {"toy": ToyMetric(name="toy-unseen", turned=True), "tiny": TinyMetric(name="tiny-unseen", swapped=True)},
}
