"""Toy rungs of the token and the metric family: a linear softmax on noisy labels, a linear map on noisy clusters."""

from dataclasses import asdict, dataclass

import numpy as np
import torch

from lossmith.discovery.costs import Cost
from lossmith.discovery.program import Program, const, inputs_of, make
from lossmith.discovery.proposers.base import ProgramLike
from lossmith.discovery.rungs.base import Block, Metrics
from lossmith.discovery.rungs.training import (
    batches,
    environment_of,
    fit,
    floats,
    generator_of,
    module_of,
    one_thread,
)

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ToyToken:
    r"""A linear softmax classifier on labels of which a share is drawn anew among the other classes.

    The best loss is known: a clean label of probability $p$ is seen with probability $(1 - \varepsilon)\,p +
    \varepsilon\,(1 - p)/(C - 1)$, whose negative logarithm is the likelihood of the noisy labels
    (`planted_token_program`). Fitness is the accuracy on clean held-out examples.
    """

    name: str = "toy"
    flips: float = 0.4
    classes: int = 10
    features: int = 24
    examples: int = 768
    test_examples: int = 2048
    sharpness: float = 8.0
    """Standard deviation of the true logits: at 8 the clean labels are almost a function of the features."""
    batch: int = 128
    steps: int = 60
    learning_rate: float = 0.15
    lopsided: bool = False
    """Whether a wrong label is always the next class: another task than the search's."""

    @property
    def ground(self) -> tuple[str, str]:
        """Task and model."""
        return (f"labels-{'lopsided-' if self.lopsided else ''}{self.flips:g}", "linear-softmax")

    @property
    def environment(self) -> str:
        """See `Rung`."""
        return environment_of({"rung": "toy-token", "version": VERSION, **asdict(self)})

    @property
    def fitness_name(self) -> str:
        """Share of clean held-out labels that are predicted."""
        return "accuracy"

    @property
    def cost(self) -> Cost:
        """See `Rung`."""
        return Cost(device_seconds=0.08, wall_seconds=0.08, jobs=1)

    def evaluate(self, program: ProgramLike, block: Block) -> Metrics:
        """See `Rung`."""
        loss = module_of(program, "token")
        draw = generator_of(block, "toy-token")
        truth = draw.standard_normal((self.features, self.classes)) * self.sharpness / np.sqrt(self.features)
        inputs = draw.standard_normal((self.examples + self.test_examples, self.features))
        logits = inputs @ truth
        labels = (logits + draw.gumbel(size=logits.shape)).argmax(1)
        wrong = draw.random(self.examples) < self.flips * (0.9 if self.lopsided else 1.0)
        shift = 1 if self.lopsided else draw.integers(1, self.classes, size=self.examples)
        noisy = np.where(wrong, (labels[: self.examples] + shift) % self.classes, labels[: self.examples])
        rows = batches(self.examples, self.batch, self.steps, generator_of(block, "order", training=True))
        with one_thread():
            weights = torch.zeros(self.features, self.classes, requires_grad=True)
            given, targets = floats(inputs[: self.examples]), torch.from_numpy(noisy)
            last = fit(
                [weights],
                lambda step: loss(given[rows[step]] @ weights, targets[rows[step]]),
                steps=self.steps,
                learning_rate=self.learning_rate,
            )
            scores = floats(inputs[self.examples :]) @ weights.detach()
        right = (scores.argmax(1).numpy() == labels[self.examples :]).mean()
        return Metrics(fitness=float(right), values={"train_objective": last})


def planted_token_program(flips: float = 0.4, classes: int = 10) -> Program:
    """The likelihood of the noisy labels of `ToyToken`."""
    p = make("exp", inputs_of("token")["token_logps"])
    other = flips / (classes - 1)
    seen = make("add", make("mul", const(1 - flips - other), p), const(other))
    return Program("token", make("neg", make("log", seen)))


@dataclass(frozen=True, kw_only=True)
class ToyMetric:
    """A linear map that must find the few directions in which classes differ, from labels of which some are wrong.

    Fitness is the accuracy of nearest class means, of five examples each, on classes that training never saw.
    """

    name: str = "toy"
    flips: float = 0.2
    informative: int = 6
    """Directions in which the classes lie apart."""
    noise: int = 26
    """Directions that say nothing, and are louder."""
    width: int = 8
    """Of the embeddings."""
    classes: int = 8
    examples: int = 24
    """Of each class."""
    batch: int = 64
    steps: int = 50
    learning_rate: float = 0.03
    loud: float = 2.0
    """Standard deviation of the directions that say nothing."""
    turned: bool = False
    """Whether informative directions are mixed with the others: another task than the search's."""

    @property
    def ground(self) -> tuple[str, str]:
        """Task and model."""
        return (f"clusters-{'turned-' if self.turned else ''}{self.flips:g}", "linear-map")

    @property
    def environment(self) -> str:
        """See `Rung`."""
        return environment_of({"rung": "toy-metric", "version": VERSION, **asdict(self)})

    @property
    def fitness_name(self) -> str:
        """Accuracy of nearest class means on unseen classes."""
        return "few_shot_accuracy"

    @property
    def cost(self) -> Cost:
        """See `Rung`."""
        return Cost(device_seconds=0.12, wall_seconds=0.12, jobs=1)

    def evaluate(self, program: ProgramLike, block: Block) -> Metrics:
        """See `Rung`."""
        loss = module_of(program, "metric")
        draw = generator_of(block, "toy-metric")
        size = self.informative + self.noise
        centres = 2.0 * draw.standard_normal((2 * self.classes, self.informative))
        labels = np.repeat(np.arange(2 * self.classes), self.examples)
        inputs = draw.standard_normal((len(labels), size)) * self.loud
        inputs[:, : self.informative] = centres[labels] + draw.standard_normal((len(labels), self.informative))
        if self.turned:
            inputs = inputs @ np.linalg.qr(draw.standard_normal((size, size)))[0]
        known = labels < self.classes
        wrong = known & (draw.random(len(labels)) < self.flips)
        noisy = np.where(wrong, draw.integers(0, self.classes, size=len(labels)), labels)
        start = draw.standard_normal((size, self.width)) / np.sqrt(size)
        rows = batches(int(known.sum()), self.batch, self.steps, generator_of(block, "order", training=True))
        with one_thread():
            weights = floats(start).requires_grad_()
            given, targets = floats(inputs[known]), torch.from_numpy(noisy[known])
            last = fit(
                [weights],
                lambda step: loss(given[rows[step]] @ weights, targets[rows[step]]),
                steps=self.steps,
                learning_rate=self.learning_rate,
            )
            found = floats(inputs[~known]) @ weights.detach()
        right = few_shot_accuracy(found, torch.from_numpy(labels[~known] - self.classes), shots=5)
        return Metrics(fitness=right, values={"train_objective": last})


def few_shot_accuracy(embeddings: torch.Tensor, labels: torch.Tensor, *, shots: int) -> float:
    """Accuracy of the nearest mean, by cosine, of the first `shots` examples of each class, on the others.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> few_shot_accuracy(rows, torch.tensor([0, 0, 1, 1]), shots=1)
        1.0
    """
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    places = [torch.nonzero(labels == label)[:, 0] for label in range(int(labels.max()) + 1)]
    means = torch.stack([unit[own[:shots]].mean(0) for own in places])
    asked = torch.cat([own[shots:] for own in places])
    nearest = (unit[asked] @ torch.nn.functional.normalize(means, dim=-1).T).argmax(1)
    return float((nearest == labels[asked]).float().mean())
