"""Small models on real tasks, through the studies: a candidate gets the trainer, data and tests of any other loss.

A rung is a study's settings without its losses. Search and confirmation see different halves of the rows, by content,
and every block draws its own test rows (and prompts, shots or pairs to train on) from its half, the same for all of
its programs: rows that all blocks share say the same of a program in each, and no interval over blocks would hold it.
Fitness is the study's deciding metric, except on `sentiment`: there every trained policy is measured with its adapters
at several strengths, and the fitness is the reward where the divergence from the start is `KL` nats per answer.
"""

import math
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from lossmith.discovery.costs import Cost
from lossmith.discovery.draws import draw_seed
from lossmith.discovery.identity import FIRST
from lossmith.discovery.proposers.base import ProgramLike
from lossmith.discovery.rungs.base import Block, CandidateError, InfrastructureError, Metrics, Split
from lossmith.discovery.rungs.pools import (
    SPLITS,
    count_rows,
    drawn,
    half_of_pairs,
    half_of_prompts,
    halves,
    items_sentence,
    on_folder,
    place_of,
    size_of_block,
)
from lossmith.discovery.rungs.training import as_program, environment_of, record_of
from lossmith.errors import ConfigurationError, DataError
from lossmith.objectives import recorded

VERSION = 2
KL = 1.0
"""Nats per answer at which rewards are compared."""
STRENGTHS = (0.5, 1.0)
"""Shares of the trained adapters with which a policy is measured on `sentiment`; the last is the policy itself."""
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
        self.config: Any = make_config(given, place=f"rung {name}")
        self._sentiment = self.config.task == "sentiment"
        self._pools: dict[Split, Any] = {}
        self._settings: dict[str, Any] = {}
        self._of_block: tuple[Any, Any] = (None, None)
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
    def kind(self) -> str:
        """Kind of its study, by the name of its settings."""
        return type(self.config).__name__

    @property
    def known(self) -> frozenset[str]:
        """Settings that act on its study."""
        from lossmith.studies.sentiment_config import IDLE

        return frozenset(type(self.config).model_fields) - (frozenset(IDLE) if self._sentiment else frozenset())

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
            setting = _Measured(self.setting_of(block), block, several=self._sentiment)
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
        there, count = self._sizes(block.split)
        return Metrics(
            fitness=self._sign * values[metric], values=values | {"test_rows": float(count), "test_pool": float(there)}
        )

    @property
    def items(self) -> str:
        """How many of how many test rows a block of the search has; reads the data."""
        what = "prompts" if self._sentiment else "texts" if self.family != "preference" else "pairs"
        return items_sentence(*self._sizes("search"), f"test {what}")

    def _sizes(self, split: Split) -> tuple[int, int]:
        """Test rows of a split's half, and of one block of it."""
        pool = self._pool(split)
        if self._sentiment:
            return len(pool.test), self.config.test_prompts
        there = count_rows(pool, "test")
        return there, size_of_block(there, self.config.test_examples)

    def _pool(self, split: Split) -> Any:
        """What the blocks of a split draw from: all beginnings of reviews of its half, or a folder with its rows."""
        if split not in self._pools:
            if self._sentiment:
                from lossmith.studies.sentiment import all_prompts

                # Prompts of the two halves are told apart among all there are, not among those that a block wants.
                every = all_prompts(self.config)
                pools: dict[Split, Any] = {each: half_of_prompts(every, place_of(each)) for each in SPLITS}
                self._check_prompts(pools)
                self._pools = pools
            else:
                self._pools[split] = halves(self.config, place_of(split))
        return self._pools[split]

    def _check_prompts(self, pools: Mapping[Split, Any]) -> None:
        """See that a block finds as many prompts as it wants.

        Raises:
            DataError: If it does not.
        """
        for part in ("train", "test") if self._sampled else ("test",):
            wanted = getattr(self.config, f"{part}_prompts")
            there = min(len(getattr(pool, part)) for pool in pools.values())
            if wanted > there:
                raise DataError(
                    f"`{part}_prompts` must be <= {there}, the different beginnings of '{self.config.reviews}' that "
                    f"search and confirmation have each, got {wanted}: lower it, or give more reviews."
                )

    @property
    def _sampled(self) -> bool:
        """Whether pairs are sampled from prompts; else they are given."""
        return self.config.pairs == "sampled"

    def _setting(self, split: Split) -> Any:
        """The study on its half of the rows, opened once."""
        if split not in self._settings:
            from lossmith.studies.comparison import open_setting

            pool = self._pool(split)
            if self._sentiment:
                whole: Any = open_setting(self.config)
                given = None if whole.given is None else half_of_pairs(whole.given, place_of(split))
                self._settings[split] = replace(whole, prompts=pool, given=given)
            else:
                _, count = self._sizes(split)
                config = on_folder(self.config, pool).model_copy(update={"test_examples": count})
                self._settings[split] = open_setting(config)
        return self._settings[split]

    def setting_of(self, block: Block) -> Any:
        """The study on the rows of one block, kept until another one is asked for."""
        key = (block.split, block.index, block.seed)
        if self._of_block[0] != key:
            setting = self._setting(block.split)
            there, count = self._sizes(block.split)
            if self._sentiment:
                own = self._prompted(setting, block, there, count)
            elif self.family == "preference":
                from lossmith.studies.preference_opening import tested_on

                items = [setting.task.test[place] for place in drawn(block, "test", there, count)]
                seed = draw_seed(block.seed, setting.config.sampling_seed, "answers")
                own = tested_on(setting, items, sampling_seed=seed)
            else:
                # After the splits are made, this seed draws the rows of test, calibration and curves, nothing else.
                seed = draw_seed(block.seed, setting.config.split_seed, "test")
                own = replace(setting, config=setting.config.model_copy(update={"split_seed": seed}))
            self._of_block = (key, own)
        return self._of_block[1]

    def _prompted(self, setting: Any, block: Block, there: int, count: int) -> Any:
        """The study of sentiment with a block's own prompts and draws of answers."""
        prompts = {"test": tuple(setting.prompts.test[place] for place in drawn(block, "test", there, count))}
        if self._sampled:
            places = drawn(block, "train", len(setting.prompts.train), self.config.train_prompts)
            prompts["train"] = tuple(setting.prompts.train[place] for place in places)
        seeds = tuple(draw_seed(block.seed, seed, "answers") for seed in self.config.drawing_seeds)
        config = setting.config.model_copy(update={"sampling_seeds": seeds})
        return replace(setting, config=config, prompts=replace(setting.prompts, **prompts))


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
        """The test of the study; on sentiment joined to the reward at equal divergence.

        A policy that stayed within it is measured as it is: what it was on the way there changes nothing.
        """
        # Data and notices of the block are found by its own seed.
        trainer.args.seed = self._block.seed
        if not self._several:
            return self._setting.evaluate(trainer, report)
        *weaker, whole = STRENGTHS
        found = self._at(whole, trainer, report)
        measured = [found["metrics"]]
        if found["metrics"]["kl"] > KL:
            measured += [self._at(strength, trainer, report)["metrics"] for strength in weaker]
        points = [(each["kl"], each["reward"]) for each in measured]
        found["metrics"]["reward_at_equal_kl"] = reward_at(KL, found["metrics"]["start_reward"], points)
        return found

    def _at(self, strength: float, trainer: Any, report: Any) -> dict[str, Any]:
        with adapters_scaled(trainer.model, strength):
            return self._setting.evaluate(trainer, report)


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
