"""A tiny transformer trained from scratch on pairs: about a second on one core.

The pairs are synthetic (`letters`: an answer is worth the sum of what its letters are worth, which depends on the
prompt; `order`: what counts is how often the letters rise), or the bytes of a data set of pairs by its name
(`polite_pairs`, `persona_pairs` ...). A share of the training labels is turned round; the test has none of that.
Fitness is the preference accuracy on held-out pairs: how often the chosen answer gained more than the rejected one.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch

from lossmith.discovery.costs import Cost
from lossmith.discovery.proposers.base import ProgramLike
from lossmith.discovery.rungs.base import Block, Metrics, Split
from lossmith.discovery.rungs.network import TinyTransformer, answer_logps
from lossmith.discovery.rungs.pools import half_of, place_of
from lossmith.discovery.rungs.training import batches, environment_of, fit, generator_of, module_of, one_thread

VERSION = 1
SYNTHETIC = ("letters", "order")
LETTERS = 16
PROMPT, ANSWER = 4, 16
BYTES_PROMPT, BYTES_ANSWER = 32, 48


@dataclass(frozen=True, kw_only=True)
class TinyPreference:
    """The rung; its fields are task, model and training."""

    name: str = "tiny"
    task: str = "letters"
    flips: float = 0.2
    pairs: int = 512
    test_pairs: int = 512
    width: int = 32
    batch: int = 32
    steps: int = 80
    learning_rate: float = 3e-3

    @property
    def ground(self) -> tuple[str, str]:
        """Task and model."""
        return (f"{self.task}-{self.flips:g}", f"transformer-{self.width}")

    @property
    def environment(self) -> str:
        """See `Rung`."""
        halved = {} if self.task in SYNTHETIC else {"halves": "by prompt"}
        return environment_of({"rung": "tiny-preference", "version": VERSION, **halved, **asdict(self)})

    @property
    def fitness_name(self) -> str:
        """See the module."""
        return "preference_accuracy"

    @property
    def cost(self) -> Cost:
        """See `Rung`."""
        seconds = 1.5 if self.task in SYNTHETIC else 6.0
        return Cost(device_seconds=seconds, wall_seconds=seconds, jobs=1)

    def evaluate(self, program: ProgramLike, block: Block) -> Metrics:
        """See `Rung`."""
        loss = module_of(program, "preference")
        with one_thread():
            ground = _ground(self, block.seed, block.index, block.split)
            network = ground.network()
            rows = batches(self.pairs, self.batch, self.steps, generator_of(block, "order", training=True))

            def loss_of(step: int) -> torch.Tensor:
                own = rows[step]
                sides = ground.train[:, own].flatten(0, 1)
                lengths = ground.train_lengths[:, own]
                chosen, rejected = answer_logps(network, sides, ground.prompt, lengths.flatten()).view(2, -1)
                return loss(
                    chosen_logps=chosen,
                    rejected_logps=rejected,
                    ref_chosen_logps=ground.train_reference[0, own],
                    ref_rejected_logps=ground.train_reference[1, own],
                    chosen_lengths=lengths[0],
                    rejected_lengths=lengths[1],
                )

            last = fit(list(network.parameters()), loss_of, steps=self.steps, learning_rate=self.learning_rate)
            gained = ground.logps(network, ground.test, ground.test_lengths) - ground.test_reference
        margins = gained[0] - gained[1]
        right = float(((margins > 0).float() + 0.5 * (margins == 0).float()).mean())
        return Metrics(
            fitness=right,
            values={"margin": float(margins.mean()), "chosen_shift": float(gained[0].mean()), "train_objective": last},
        )


@dataclass(frozen=True)
class _Ground:
    """One block: both sides of every pair as rows [side, pair, place], and what the untrained model says of them."""

    vocabulary: int
    width: int
    prompt: int
    seed: tuple[int, int, Split]
    train: torch.Tensor
    train_lengths: torch.Tensor
    train_reference: torch.Tensor
    test: torch.Tensor
    test_lengths: torch.Tensor
    test_reference: torch.Tensor

    def network(self) -> TinyTransformer:
        """The model before training, the same for every program of the block."""
        return _network(self.vocabulary, self.train.shape[2], self.width, *self.seed)

    def logps(self, network: TinyTransformer, rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [side, pair] without a graph."""
        return _logps(network, rows, lengths, self.prompt)


def _network(vocabulary: int, places: int, width: int, seed: int, index: int, split: Split) -> TinyTransformer:
    draw = generator_of(Block(index=index, seed=seed, split=split), "weights")
    return TinyTransformer(vocabulary, places, width=width, causal=True, draw=draw)


def _logps(network: TinyTransformer, rows: torch.Tensor, lengths: torch.Tensor, prompt: int) -> torch.Tensor:
    with torch.no_grad():
        parts = [
            answer_logps(network, own, prompt, many)
            for own, many in zip(rows.flatten(0, 1).split(256), lengths.flatten().split(256), strict=True)
        ]
    return torch.cat(parts).view(lengths.shape)


@lru_cache(maxsize=4)
def _ground(rung: TinyPreference, seed: int, index: int, split: Split) -> _Ground:
    """Pairs and reference log-probabilities of a block, made once for all programs."""
    draw = generator_of(Block(index=index, seed=seed, split=split), f"tiny/{rung.task}")
    count = rung.pairs + rung.test_pairs
    if rung.task in SYNTHETIC:
        vocabulary, prompt, rows = LETTERS, PROMPT, _letters(rung.task, count, draw)
        lengths = np.full((2, count), ANSWER)
    else:
        vocabulary, prompt = 257, BYTES_PROMPT
        rows, lengths = _bytes(rung, draw, split)
    flipped = np.concatenate([draw.random(rung.pairs) < rung.flips, np.zeros(rung.test_pairs, dtype=bool)])
    rows[:, flipped], lengths[:, flipped] = rows[::-1][:, flipped], lengths[::-1][:, flipped]
    tensors, sizes = torch.from_numpy(rows), torch.from_numpy(lengths)
    network = _network(vocabulary, rows.shape[2], rung.width, seed, index, split)
    reference = _logps(network, tensors, sizes, prompt)
    parts = [part for whole in (tensors, sizes, reference) for part in whole.split([rung.pairs, rung.test_pairs], 1)]
    train, test, train_lengths, test_lengths, train_reference, test_reference = parts
    return _Ground(
        vocabulary,
        rung.width,
        prompt,
        (seed, index, split),
        train,
        train_lengths,
        train_reference,
        test,
        test_lengths,
        test_reference,
    )


def _letters(task: str, count: int, draw: np.random.Generator) -> np.ndarray:
    """Pairs of answers [2, count, places], the better one first."""
    prompts = draw.integers(0, LETTERS, size=(count, PROMPT))
    answers = draw.integers(0, LETTERS, size=(2, count, ANSWER))
    if task == "order":
        worth = np.sign(np.diff(answers, axis=-1)).sum(-1) + 0.1 * draw.standard_normal((2, count))
    else:
        common, own = draw.standard_normal(LETTERS), draw.standard_normal((2, LETTERS))
        # The last letter of the prompt says which half of the alphabet's worths is added.
        table = common + 0.7 * own[prompts[:, -1] % 2]
        worth = np.take_along_axis(np.stack([table, table]), answers, -1).sum(-1)
    better = worth[0] >= worth[1]
    answers = np.where(better[None, :, None], answers, answers[::-1])
    return np.concatenate([np.stack([prompts, prompts]), answers], -1)


def _bytes(rung: TinyPreference, draw: np.random.Generator, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a data set as bytes, cut; search and confirmation see different halves of its prompts."""
    from lossmith.tasks.preference import prompt_text
    from lossmith.tasks.preference_loading import load_preference_task

    found = half_of(load_preference_task(rung.task), place_of(split))
    rows = np.full((2, rung.pairs + rung.test_pairs, BYTES_PROMPT + BYTES_ANSWER), 256, dtype=np.int64)
    lengths = np.zeros(rows.shape[:2], dtype=np.int64)
    at = 0
    for pairs, wanted in ((found["train"], rung.pairs), (found["test"], rung.test_pairs)):
        for place in draw.choice(len(pairs), size=wanted, replace=len(pairs) < wanted):
            pair = pairs[int(place)]
            prompt = prompt_text(pair.prompt).encode()[-BYTES_PROMPT:]
            for side, answer in enumerate((pair.chosen, pair.rejected)):
                told = answer.encode()[:BYTES_ANSWER] or b" "
                rows[side, at, BYTES_PROMPT - len(prompt) : BYTES_PROMPT] = list(prompt)
                rows[side, at, BYTES_PROMPT : BYTES_PROMPT + len(told)] = list(told)
                lengths[side, at] = len(told)
            at += 1
    return rows, lengths
