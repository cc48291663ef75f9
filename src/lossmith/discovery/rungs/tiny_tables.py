"""Tiny rungs of the token and the metric family: the same transformer on noisy next letters, and on noisy classes."""

from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch

from lossmith.discovery.costs import Cost
from lossmith.discovery.proposers.base import ProgramLike
from lossmith.discovery.rungs.base import Block, Metrics, Split
from lossmith.discovery.rungs.network import TinyTransformer
from lossmith.discovery.rungs.toy_tables import few_shot_accuracy
from lossmith.discovery.rungs.training import batches, environment_of, fit, generator_of, module_of, one_thread

VERSION = 1
LETTERS = 24
PLACES = 24
TELLING = 10
"""Letters of which a class has some; the rest says nothing."""


@dataclass(frozen=True, kw_only=True)
class TinyToken:
    """Next letters of a random chain, of which a share is replaced in the training labels alone.

    Fitness is how often the most likely next letter is predicted, on chains that training never saw.
    """

    name: str = "tiny"
    back: int = 1
    """How many places back the letter stands that decides the next one: 1 in the search, 2 elsewhere."""
    flips: float = 0.4
    rows: int = 256
    test_rows: int = 128
    width: int = 32
    batch: int = 32
    steps: int = 80
    learning_rate: float = 5e-3

    @property
    def ground(self) -> tuple[str, str]:
        """Task and model."""
        return (f"chain-{self.back}-{self.flips:g}", f"transformer-{self.width}")

    @property
    def environment(self) -> str:
        """See `Rung`."""
        return environment_of({"rung": "tiny-token", "version": VERSION, **asdict(self)})

    @property
    def fitness_name(self) -> str:
        """Share of next letters whose most likely one is predicted."""
        return "exact_match"

    @property
    def cost(self) -> Cost:
        """See `Rung`."""
        return Cost(device_seconds=1.5, wall_seconds=1.5, jobs=1)

    def evaluate(self, program: ProgramLike, block: Block) -> Metrics:
        """See `Rung`."""
        loss = module_of(program, "token")
        with one_thread():
            ids, labels, likely = _chains(self, block.seed, block.index, block.split)
            draw = generator_of(block, "weights")
            network = TinyTransformer(LETTERS, PLACES, width=self.width, causal=True, draw=draw)
            rows = batches(self.rows, self.batch, self.steps, generator_of(block, "order", training=True))
            last = fit(
                list(network.parameters()),
                lambda step: loss(network(ids[rows[step]]), labels[rows[step]]),
                steps=self.steps,
                learning_rate=self.learning_rate,
            )
            with torch.no_grad():
                found = network(ids[self.rows :])[:, self.back - 1 :].argmax(-1)
        right = (found == likely[self.rows :, self.back - 1 :]).float().mean()
        return Metrics(fitness=float(right), values={"train_objective": last})


@lru_cache(maxsize=4)
def _chains(rung: TinyToken, seed: int, index: int, split: Split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Letters, the labels of training, and the most likely next letters, all [rows, places]."""
    draw = generator_of(Block(index=index, seed=seed, split=split), f"tiny-token/{rung.back}")
    likely = draw.permutation(LETTERS)
    count = rung.rows + rung.test_rows
    letters = np.zeros((count, PLACES + 1), dtype=np.int64)
    letters[:, : rung.back] = draw.integers(0, LETTERS, size=(count, rung.back))
    stray = draw.random((count, PLACES + 1)) < 0.2
    other = draw.integers(0, LETTERS, size=(count, PLACES + 1))
    for place in range(rung.back, PLACES + 1):
        letters[:, place] = np.where(stray[:, place], other[:, place], likely[letters[:, place - rung.back]])
    ids, labels = letters[:, :-1], letters[:, 1:].copy()
    wrong = draw.random(labels.shape) < rung.flips
    labels[wrong] = draw.integers(0, LETTERS, size=int(wrong.sum()))
    if rung.back > 1:
        labels[:, : rung.back - 1] = -100
    back = np.concatenate([np.zeros((count, rung.back - 1), dtype=np.int64), ids[:, : PLACES - rung.back + 1]], 1)
    return torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(likely[back])


@dataclass(frozen=True, kw_only=True)
class TinyMetric:
    """Classes of letter rows: some letters tell the class, the others are loud and belong to the row alone.

    Fitness is the accuracy of nearest class means, of five rows each, on classes that training never saw.
    """

    name: str = "tiny"
    swapped: bool = False
    """Whether the letters that tell a class are the others, and more of them: another task than the search's."""
    flips: float = 0.2
    classes: int = 12
    rows_per_class: int = 24
    width: int = 32
    batch: int = 48
    steps: int = 60
    learning_rate: float = 3e-3

    @property
    def ground(self) -> tuple[str, str]:
        """Task and model."""
        return (f"{'others' if self.swapped else 'letters'}-{self.flips:g}", f"transformer-{self.width}")

    @property
    def environment(self) -> str:
        """See `Rung`."""
        return environment_of({"rung": "tiny-metric", "version": VERSION, **asdict(self)})

    @property
    def fitness_name(self) -> str:
        """Accuracy of nearest class means on unseen classes."""
        return "few_shot_accuracy"

    @property
    def cost(self) -> Cost:
        """See `Rung`."""
        return Cost(device_seconds=1.2, wall_seconds=1.2, jobs=1)

    def evaluate(self, program: ProgramLike, block: Block) -> Metrics:
        """See `Rung`."""
        loss = module_of(program, "metric")
        with one_thread():
            ids, labels, noisy = _classes(self, block.seed, block.index, block.split)
            known = self.classes * self.rows_per_class
            draw = generator_of(block, "weights")
            network = TinyTransformer(LETTERS, PLACES, width=self.width, causal=False, draw=draw)
            rows = batches(known, self.batch, self.steps, generator_of(block, "order", training=True))
            last = fit(
                [each for each in network.parameters() if each is not network.head.weight],
                lambda step: loss(network.hidden(ids[rows[step]]).mean(1), noisy[rows[step]]),
                steps=self.steps,
                learning_rate=self.learning_rate,
            )
            with torch.no_grad():
                found = network.hidden(ids[known:]).mean(1)
        right = few_shot_accuracy(found, labels[known:] - self.classes, shots=5)
        return Metrics(fitness=right, values={"train_objective": last})


@lru_cache(maxsize=4)
def _classes(rung: TinyMetric, seed: int, index: int, split: Split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Letters [rows, places], true classes, and the labels of training; unseen classes come last."""
    draw = generator_of(Block(index=index, seed=seed, split=split), f"tiny-metric/{rung.swapped}")
    labels = np.repeat(np.arange(2 * rung.classes), rung.rows_per_class)
    telling, idle = (LETTERS - TELLING, TELLING) if rung.swapped else (TELLING, LETTERS - TELLING)
    first, other = (idle, 0) if rung.swapped else (0, telling)
    # A class has three letters of its own among those that tell; each row has three of its own among the others.
    own = first + np.stack([draw.permutation(telling)[:3] for _ in range(2 * rung.classes)])
    stray = other + np.stack([draw.permutation(idle)[:3] for _ in range(len(labels))])
    of_class = draw.random((len(labels), PLACES)) < (0.5 if rung.swapped else 0.35)
    pick = draw.integers(0, 3, size=of_class.shape)
    letters = np.where(of_class, own[labels[:, None], pick], np.take_along_axis(stray, pick, 1))
    wrong = (labels < rung.classes) & (draw.random(len(labels)) < rung.flips)
    noisy = np.where(wrong, draw.integers(0, rung.classes, size=len(labels)), labels)
    return torch.from_numpy(letters), torch.from_numpy(labels), torch.from_numpy(noisy)
