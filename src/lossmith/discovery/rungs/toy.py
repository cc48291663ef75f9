r"""Preferences among a handful of answers, with flipped labels: a loss is trained and judged in 50 milliseconds.

The policy is log-linear, $\pi_w(y \mid x) \propto \exp(10\, w^\top \phi(x, y))$ over eight answers, and begins at the
uniform reference. Pairs are labelled by a Bradley-Terry judge of the true reward $r^\ast$, and then a share
$\varepsilon$ of the labels is turned round. What is trained is only $w$, so a loss matters by how it weighs the pairs.

**The fitness is the true reward at equal KL**: the learnt direction is scaled until the policy is 0.5 nats from the
reference, on prompts that training never saw, and its reward is divided by that of the true direction at the same KL.
So a loss gains nothing by pushing further, or by a favourable step size; 1 is what no loss can exceed but by chance.

**The best loss is known** (`planted_program`): given its features, a pair's label has the probability
$(1 - 2\varepsilon)\,\sigma(s) + \varepsilon$ with $s$ the true margin, so

$$\ell = -\log\left((1 - 2\varepsilon)\,\sigma(\beta\rho) + \varepsilon\right)$$

is the log-likelihood of the world that drew the labels, and no loss of the margin has a direction with smaller
asymptotic variance (Cramér-Rao). It stops pulling at pairs that the policy finds absurd, which are mostly the flipped
ones; DPO pulls hardest at just those. Label-smoothed DPO, with its pull to the other side, is worse than DPO here: the
fitness is blind to how sure a policy is, which is all that smoothing tempers.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch

from lossmith.discovery.costs import Cost
from lossmith.discovery.program import Node, Program, const, inputs_of, make
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

SHARPNESS = 10.0
"""1 / 0.1: with it the usual beta of 0.1 makes beta times the log-ratio margin the margin of the features."""
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ToyPreference:
    """The rung; its fields are the world."""

    name: str = "toy"
    flips: float = 0.25
    """Share of labels that are turned round."""
    scale: float = 12.0
    """Standard deviation of the true reward over answers: at 12 the judge alone is almost never wrong."""
    pairs: int = 512
    answers: int = 8
    features: int = 24
    test_prompts: int = 256
    batch: int = 128
    steps: int = 60
    learning_rate: float = 0.1
    kl: float = 0.5
    """Nats between policy and reference at which rewards are compared."""
    skewed: bool = False
    """Whether features are skewed and the longer answers noisier: another task than the search's."""

    @property
    def ground(self) -> tuple[str, str]:
        """Task and model."""
        return (f"answers-{'skewed-' if self.skewed else ''}{self.flips:g}", "log-linear")

    @property
    def environment(self) -> str:
        """See `Rung`."""
        return environment_of({"rung": "toy-preference", "version": VERSION, **asdict(self)})

    @property
    def fitness_name(self) -> str:
        """See the module."""
        return "reward_at_equal_kl"

    @property
    def cost(self) -> Cost:
        """See `Rung`."""
        return Cost(device_seconds=0.07, wall_seconds=0.07, jobs=1)

    def evaluate(self, program: ProgramLike, block: Block) -> Metrics:
        """See `Rung`."""
        loss = module_of(program, "preference")
        with one_thread():
            world = _World.drawn(self, block)
            weights = torch.zeros(self.features, requires_grad=True)
            rows = batches(self.pairs, self.batch, self.steps, generator_of(block, "order", training=True))
            reference = torch.full((self.batch,), -float(np.log(self.answers)))

            def loss_of(step: int) -> torch.Tensor:
                chosen, rejected = world.logps(weights, rows[step])
                return loss(
                    chosen_logps=chosen,
                    rejected_logps=rejected,
                    ref_chosen_logps=reference,
                    ref_rejected_logps=reference,
                    chosen_lengths=world.chosen_lengths[rows[step]],
                    rejected_lengths=world.rejected_lengths[rows[step]],
                )

            last = fit([weights], loss_of, steps=self.steps, learning_rate=self.learning_rate)
            learnt = weights.detach()
            reward, best = (world.reward_at(direction, self.kl) for direction in (learnt, world.truth))
        cosine = float(torch.cosine_similarity(learnt, world.truth, dim=0))
        return Metrics(
            fitness=reward / best,
            values={"cosine": cosine, "win_rate": world.win_rate(learnt), "train_objective": last},
        )


@dataclass(frozen=True)
class _World:
    """One block: prompts with their answers, labels with flips, prompts for the test."""

    truth: torch.Tensor
    features: torch.Tensor
    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_lengths: torch.Tensor
    rejected_lengths: torch.Tensor
    test: torch.Tensor

    @classmethod
    def drawn(cls, rung: ToyPreference, block: Block) -> "_World":
        draw = generator_of(block, "toy-preference")
        truth = draw.standard_normal(rung.features)
        truth *= rung.scale / np.linalg.norm(truth)
        shape = (rung.pairs + rung.test_prompts, rung.answers, rung.features)
        features = draw.standard_normal(shape, dtype=np.float32)
        if rung.skewed:
            features = np.exp(0.5 * features) - np.float32(np.exp(0.125))
        two = np.argsort(draw.random((rung.pairs, rung.answers)), axis=1)[:, :2]
        rewards = features[: rung.pairs] @ truth
        margin = np.take_along_axis(rewards, two, 1) @ np.array([1.0, -1.0])
        lengths = draw.integers(8, 33, size=two.shape)
        first = draw.random(rung.pairs) < 1 / (1 + np.exp(-np.clip(margin, -50, 50)))
        flips = rung.flips * (2 * lengths.max(1) / lengths.max() - 0.8 if rung.skewed else 1.0)
        first ^= draw.random(rung.pairs) < flips
        order = np.where(first[:, None], [[0, 1]], [[1, 0]])
        two, lengths = np.take_along_axis(two, order, 1), np.take_along_axis(lengths, order, 1)
        chosen, rejected, *sizes = (torch.from_numpy(np.ascontiguousarray(x)) for x in (*two.T, *lengths.T))
        train, test = floats(features[: rung.pairs]), floats(features[rung.pairs :])
        return cls(floats(truth), train, chosen, rejected, sizes[0], sizes[1], test)

    def logps(self, weights: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the chosen and the rejected answer."""
        logps = torch.log_softmax(SHARPNESS * (self.features[rows] @ weights), -1)
        sides = torch.stack([self.chosen[rows], self.rejected[rows]], 1)
        found = logps.gather(1, sides)
        return found[:, 0], found[:, 1]

    def reward_at(self, direction: torch.Tensor, kl: float) -> float:
        """True reward per test prompt of the policy along `direction` that is `kl` nats from the reference."""
        rewards = self.test @ self.truth
        scores = self.test @ direction
        size = float(scores.abs().max())
        if size == 0:
            return float(rewards.mean())
        low, high = 0.0, 100.0 / size
        uniform = float(np.log(self.test.shape[1]))
        for _ in range(20):
            middle = (low + high) / 2
            logps = torch.log_softmax(middle * scores, -1)
            far = float((logps.exp() * logps).sum(-1).mean()) + uniform
            low, high = (middle, high) if far < kl else (low, middle)
        return float((torch.softmax(low * scores, -1) * rewards).sum(-1).mean())

    def win_rate(self, direction: torch.Tensor) -> float:
        """Share of pairs of test answers in the true order; 1/2 where the direction says nothing."""
        learnt, true = self.test @ direction, self.test @ self.truth
        agree = torch.sign(learnt[:, 0] - learnt[:, 1]) * torch.sign(true[:, 0] - true[:, 1])
        return float((0.5 + 0.5 * agree).mean())


def margin() -> Node:
    """The log-ratio margin of a pair."""
    x = inputs_of("preference")
    policy = make("sub", x["chosen_logps"], x["rejected_logps"])
    return make("sub", policy, make("sub", x["ref_chosen_logps"], x["ref_rejected_logps"]))


def planted_program(flips: float = 0.25, beta: float = 0.1) -> Program:
    """The likelihood of the toy world: what a search there has to find, or do better than."""
    right = make("sigmoid", make("mul", const(beta), margin()))
    likelihood = make("add", make("mul", const(1 - 2 * flips), right), const(flips))
    return Program("preference", make("neg", make("log", likelihood)))
