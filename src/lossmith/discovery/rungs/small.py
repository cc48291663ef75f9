"""Small models on real tasks, through the studies: a candidate gets the trainer, data and tests of any other loss.

A rung is a study's settings without its losses. Search and confirmation see different halves of the rows, by content.
Fitness is the study's deciding metric, except on `sentiment`: there every trained policy is measured with its adapters
at several strengths, and the fitness is the reward where the divergence from the start is `KL` nats per answer.
"""

import json
import math
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from lossmith.discovery.costs import Cost
from lossmith.discovery.identity import FIRST
from lossmith.discovery.proposers.base import ProgramLike
from lossmith.discovery.rungs.base import Block, CandidateError, InfrastructureError, Metrics, Split
from lossmith.discovery.rungs.training import as_program, environment_of, record_of
from lossmith.errors import ConfigurationError
from lossmith.objectives import recorded

VERSION = 1
KL = 1.0
"""Nats per answer at which rewards are compared."""
STRENGTHS = (0.5, 1.0)
"""Shares of the trained adapters with which a policy is measured on `sentiment`."""
LOWER_IS_BETTER = ("nll", "brier", "ece", "kl")
_ONE_AT_A_TIME = threading.Lock()  # studies draw from torch's global generator


class SmallRung:
    """A study as a rung.

    Args:
        name: Of the rung.
        family: `preference`, `token` or `metric`.
        settings: Of the study: `task`, `model`, and whatever a recipe may hold but losses and seeds.
        seconds: What one evaluation is expected to take.
    """

    apart = True
    """Models, devices and networks can hang: see `Rung`."""

    def __init__(self, *, name: str, family: str, settings: Mapping[str, Any], seconds: float = 150.0):
        from lossmith.studies import make_config

        self.name, self.family = name, family
        given = {**settings, "losses": [FIRST[family]], "baseline": FIRST[family], "seeds": [0]}
        self.config = make_config(given, place=f"rung {name}")
        self._sentiment = self.config.task == "sentiment"
        self._settings: dict[str, Any] = {}
        self.cost = Cost(device_seconds=seconds, wall_seconds=seconds, jobs=1)
        metric = self.config.metric
        lower = metric in LOWER_IS_BETTER or metric.endswith(("_nll", "_ece"))
        self._sign = -1.0 if lower else 1.0
        self.fitness_name = "reward_at_equal_kl" if self._sentiment else f"negative_{metric}" if lower else metric

    @property
    def ground(self) -> tuple[str, str]:
        """Task and model."""
        return (self.config.task, str(self.config.model))

    @property
    def environment(self) -> str:
        """See `Rung`."""
        from lossmith.studies.provenance import versions

        own = {"kl": KL, "strengths": STRENGTHS} if self._sentiment else {}
        known = {name: versions().get(name) for name in ("transformers", "trl", "peft")}
        return environment_of(
            {"rung": "small", "version": VERSION, "family": self.family, **own, **self.config.identity(), **known}
        )

    def evaluate(self, program: ProgramLike, block: Block) -> Metrics:
        """See `Rung`."""
        import torch

        from lossmith.errors import TrainingDivergedError
        from lossmith.studies.run import run_block

        record = record_of(as_program(program, self.family))
        with _ONE_AT_A_TIME, recorded(record), tempfile.TemporaryDirectory(prefix="lossmith-") as workspace:
            setting = _Measured(self._setting(block.split), block, several=self._sentiment)
            try:
                found = run_block(setting, record.name, block.seed, Path(workspace) / "run")  # pyright: ignore[reportArgumentType]
            except TrainingDivergedError as error:
                raise CandidateError(str(error)) from error
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise InfrastructureError(f"Out of memory: {error}") from error
        if found.status != "finished":
            if "memory" in str(found.error).lower():
                raise InfrastructureError(str(found.error))
            raise CandidateError(str(found.error))
        values = {name: float(value) for name, value in found.metrics.items() if math.isfinite(float(value))}
        metric = self.fitness_name if self._sentiment else self.config.metric
        if metric not in values:
            raise CandidateError(f"`{metric}` is not finite after training.")
        return Metrics(fitness=self._sign * values[metric], values=values)

    def _setting(self, split: Split) -> Any:
        """The study on its half of the rows, opened once."""
        if split not in self._settings:
            from lossmith.studies.comparison import open_setting

            place = 0 if split == "search" else 1
            if self._sentiment:
                twice = {name: 2 * getattr(self.config, name) for name in ("train_prompts", "test_prompts")}
                whole = open_setting(self.config.model_copy(update=twice))
                prompts = whole.prompts  # pyright: ignore[reportAttributeAccessIssue]
                own = replace(prompts, train=prompts.train[place::2], test=prompts.test[place::2])
                self._settings[split] = replace(whole, prompts=own, config=self.config)  # pyright: ignore[reportCallIssue]
            else:
                folder = halves(self.config, place)
                self._settings[split] = open_setting(self.config.model_copy(update={"task": str(folder)}))
        return self._settings[split]


class _Measured:
    """A study's setting for one block: the twin gets another order, and sentiment is measured at several strengths."""

    def __init__(self, setting: Any, block: Block, *, several: bool):
        self._setting, self._block, self._several = setting, block, several

    def __getattr__(self, name: str) -> Any:
        return getattr(self._setting, name)

    def prepare(self, text: str, seed: int, workspace: Path, report: Any) -> Any:
        """The trainer, with its order of rows drawn from the block's training seed."""
        trainer = self._setting.prepare(text, seed, workspace, report)
        trainer.args.seed = trainer.args.data_seed = self._block.training_seed
        return trainer

    def evaluate(self, trainer: Any, report: Any) -> dict[str, Any]:
        """The test of the study; on sentiment at every strength, joined to the reward at equal divergence."""
        # Data and notices of the block are found by its own seed.
        trainer.args.seed = self._block.seed
        if not self._several:
            return self._setting.evaluate(trainer, report)
        points, found = [], {}
        for strength in STRENGTHS:
            with adapters_scaled(trainer.model, strength):
                found = self._setting.evaluate(trainer, report)
            points.append((found["metrics"]["kl"], found["metrics"]["reward"]))
        start = found["metrics"]["start_reward"]
        found["metrics"]["reward_at_equal_kl"] = reward_at(KL, start, points)
        return found


@contextmanager
def adapters_scaled(model: Any, factor: float) -> Iterator[None]:
    """For the length of a `with`, LoRA adapters count `factor` times as much."""
    scalings = [each.scaling for each in model.modules() if isinstance(getattr(each, "scaling", None), dict)]
    if not scalings:
        raise ConfigurationError("Reward at equal KL scales adapters: give the study `lora`.")
    before = [dict(each) for each in scalings]
    for each in scalings:
        for name in each:
            each[name] *= factor
    try:
        yield
    finally:
        for each, kept in zip(scalings, before, strict=True):
            each.update(kept)


def reward_at(kl: float, start: float, points: Sequence[tuple[float, float]]) -> float:
    """Reward at a divergence, on the line from the start through the measured points over the root of the divergence.

    Near the start reward grows as the root of the divergence does. A policy that never came so far has what it reached:
    it is not rewarded for what it might have become.

    Example:
        >>> reward_at(1.0, 0.4, [(0.25, 0.5), (4.0, 0.8)]), reward_at(9.0, 0.4, [(0.25, 0.5), (4.0, 0.8)])
        (0.6, 0.8)
    """
    line = [(0.0, start), *sorted((math.sqrt(max(far, 0.0)), reward) for far, reward in points)]
    wanted = math.sqrt(kl)
    for (low, below), (high, above) in pairwise(line):
        if wanted <= high:
            share = 1.0 if high == low else (wanted - low) / (high - low)
            return round(below + share * (above - below), 12)
    return line[-1][1]


def halves(config: Any, place: int) -> Path:
    """A folder with every second row of each split of a task, written once per content into the user's cache.

    Raises:
        DataError: If the task cannot be read.
    """
    import hashlib

    from filelock import FileLock

    from lossmith.evidence import check_writable, write_atomically
    from lossmith.integrations.models import cache_folder

    task = _load(config)
    key = hashlib.sha256(f"{task.fingerprint}/{place}".encode()).hexdigest()[:24]
    target = cache_folder() / "halves" / key
    check_writable(target, needed_mib=5)
    with FileLock(str(target) + ".lock"):
        # The training rows come last: where they are, the rest is.
        for split in ("test", "validation", "train"):
            rows = getattr(task, split, ())[place::2]
            if rows and not (target / "train.jsonl").is_file():
                lines = "".join(json.dumps(_row(row, task)) + "\n" for row in rows)
                write_atomically(target / f"{split}.jsonl", lines)
    return target


def _load(config: Any) -> Any:
    from lossmith.studies import StudyConfig
    from lossmith.studies.classification import load_study_task
    from lossmith.tasks.preference_loading import load_preference_task

    if isinstance(config, StudyConfig):
        return load_study_task(config)
    if hasattr(config, "test_fraction") and hasattr(config, "split_seed"):
        told = {"data": config.data, "test_fraction": config.test_fraction, "split_seed": config.split_seed}
        return load_preference_task(config.task, **told)
    raise ConfigurationError(
        f"A rung trains on pairs, on sentiment or on classes of texts, and '{config.task}' is none of them."
    )


def _row(row: Any, task: Any) -> dict[str, Any]:
    names = getattr(task, "label_names", None)
    if names is not None:
        pair = {"text_pair": row.pair} if getattr(row, "pair", None) is not None else {}
        return {"text": row.text, **pair, "label": names[row.label]}
    prompt = row.prompt
    if not isinstance(prompt, str):
        prompt = [asdict(each) if is_dataclass(each) and not isinstance(each, type) else each for each in prompt]
        return {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": row.chosen}],
            "rejected": [{"role": "assistant", "content": row.rejected}],
        }
    return {"prompt": prompt, "chosen": row.chosen, "rejected": row.rejected}
