"""Inputs that tell a right objective from a wrong one, family by family, and inputs at the ends of the range."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lossmith._typing import Tensor
from lossmith.engines import DenseRegionStatistics, DenseTokenStatistics, SimilarityRows
from lossmith.objectives import ObjectiveRecord

ROWS, VOCAB, CLASSES, DIM = 9, 7, 3, 6
SIZES = {"num_classes": CLASSES, "embedding_dim": DIM}
IGNORED = -100
_TABLES = ("similarities", "distances", "same", "different")

# Classes of uneven size, each with two rows at least, none of them in order.
_LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1])


@dataclass(frozen=True)
class Batch:
    """Inputs of a loss module by name, one entry per row but for `kl`."""

    inputs: dict[str, Tensor]

    @property
    def rows(self) -> int:
        """Number of items."""
        return len(self.inputs[self.leaf_names[0]])

    @property
    def leaf_names(self) -> tuple[str, ...]:
        """Inputs that a model makes, so that gradients flow to them."""
        return tuple(name for name in self.inputs if name in ("logits", "embeddings") or name.endswith("logps"))

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors of `leaf_names`."""
        return [self.inputs[name] for name in self.leaf_names]

    def take(self, rows: Tensor | slice) -> "Batch":
        """The chosen rows only."""
        return Batch({name: value if name == "kl" else value[rows] for name, value in self.inputs.items()})

    def ignore(self, rows: Tensor, *, fill: float | None = None, by: str = "valid") -> "Batch":
        """The batch with `rows` (bool) ignored, and `fill` in their place among what a model makes.

        Args:
            rows: True where the row is to be ignored.
            fill: What the ignored rows hold; None leaves them.
            by: How a pair is ignored: "valid", or the name of a length that is set to 0.
        """
        changed = dict(self.inputs)
        if "labels" in changed:
            changed["labels"] = changed["labels"].masked_fill(rows, IGNORED)
        elif by == "valid":
            changed["valid"] = ~rows
        else:
            changed[by] = changed[by].masked_fill(rows, 0)
        if fill is not None:
            for name in self.leaf_names:
                place = rows.view(-1, *[1] * (changed[name].ndim - 1))
                changed[name] = changed[name].detach().masked_fill(place, fill)
        return Batch(changed)

    def to(self, dtype: torch.dtype) -> "Batch":
        """All floating-point inputs in another dtype."""
        return Batch({name: x.to(dtype) if x.is_floating_point() else x for name, x in self.inputs.items()})

    def fresh(self) -> "Batch":
        """A copy whose leaves collect gradients of their own."""
        names = self.leaf_names
        return Batch(
            {name: x.detach().clone().requires_grad_() if name in names else x for name, x in self.inputs.items()}
        )


def draw_batch(record: ObjectiveRecord, *, rows: int = ROWS, seed: int = 0) -> Batch:
    """Random float64 inputs for the module of an objective; the same for the same seed.

    Args:
        record: The objective.
        rows: Tokens, rows, pairs or completions.
        seed: Seed of the generator.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def logps(size: int) -> Tensor:
        return -14 - 16 * torch.rand(size, generator=generator, dtype=torch.float64)

    def lengths(size: int) -> Tensor:
        return torch.randint(3, 12, (size,), generator=generator).double()

    labels = _LABELS.repeat(rows // len(_LABELS) + 1)[:rows]
    if record.family in ("token", "region"):
        return Batch({"logits": 1.7 * normal(rows, VOCAB) + 0.3, "labels": labels})
    if record.family == "metric":
        return Batch({"embeddings": 1.7 * normal(rows, DIM) + 0.3, "labels": labels})
    if record.family == "unpaired":
        ours = logps(rows)
        desirable = torch.arange(rows) % 3 != 1
        kl = normal(4).abs() + 0.4
        return Batch({"logps": ours, "ref_logps": ours + 4 * normal(rows), "desirable": desirable, "kl": kl})
    chosen, rejected = logps(rows), logps(rows)
    return Batch(
        {
            "chosen_logps": chosen,
            "rejected_logps": rejected,
            "ref_chosen_logps": chosen + 4 * normal(rows),
            "ref_rejected_logps": rejected + 4 * normal(rows),
            "chosen_lengths": lengths(rows),
            "rejected_lengths": lengths(rows),
        }
    )


def statistics_of(record: ObjectiveRecord, batch: Batch, *, proxies: Tensor | None = None) -> dict[str, Tensor]:
    """What the objective reads of a batch, from the dense engine."""
    inputs = batch.inputs
    if record.family == "token":
        return DenseTokenStatistics(inputs["logits"], inputs["labels"]).get(record.reads)
    if record.family == "region":
        return DenseRegionStatistics(inputs["logits"], inputs["labels"]).get(record.reads)
    made = dict(inputs)
    if record.family == "metric":
        rows, labels = inputs["embeddings"], inputs["labels"]
        tables = tuple(name for name in record.reads if name in _TABLES)
        if tables and record.hyperparameters.get("normalize", True):
            rows = F.normalize(rows, dim=-1)
        made.update(SimilarityRows(rows, labels, rows, labels).statistics(tables))
        if proxies is not None:
            made["proxies"] = proxies
    like = batch.leaves[0]
    if "kl" in made:
        made["kl"] = made["kl"].mean()
    # A running mean of rewards, of the size that the random batches have.
    made["reward_shift"] = like.new_tensor(0.17)
    return {name: made[name] for name in record.reads}


def draw_statistics(
    record: ObjectiveRecord, *, rows: int = ROWS, seed: int = 0, hyperparameters: dict[str, Any] | None = None
) -> dict[str, Tensor]:
    """Random float64 statistics that an objective reads: its positional arguments by name.

    Args:
        record: The objective.
        rows: Tokens, rows, pairs or completions that they belong to.
        seed: Seed of the generator.
        hyperparameters: Settings that the shape of proxies depends on, those left out at their default.

    Example:
        >>> from lossmith.objectives import get_record
        >>> {name: tuple(x.shape) for name, x in draw_statistics(get_record("supcon"), rows=4).items()}
        {'similarities': (4, 4), 'same': (4, 4), 'different': (4, 4)}
    """
    sizes = {**record.hyperparameters, **SIZES, **(hyperparameters or {})}
    generator = torch.Generator().manual_seed(seed + 1000)
    shape = [sizes[name] for name in record.proxy_shape]
    proxies = torch.randn(shape, generator=generator, dtype=torch.float64) if shape else None
    statistics = statistics_of(record, draw_batch(record, rows=rows, seed=seed), proxies=proxies)
    return {name: value.detach() for name, value in statistics.items()}


def extreme_batches(
    record: ObjectiveRecord, *, proxies: Tensor | None = None, dtype: torch.dtype = torch.float64
) -> Iterator[tuple[str, Batch]]:
    """Named inputs at the ends of what a family can meet; every loss is finite there, and so is its gradient.

    Logits to +-1e4, log-probabilities to -1e5, margins to +-1e6, probabilities that round to 0 and to 1, a batch of
    one, one class, embeddings of length 0 and 1e4, embeddings on and opposite their proxies.

    Args:
        record: The objective.
        proxies: Proxies of the module, where it owns some.
        dtype: float32 or float64; not float16, whose largest number is 65504.
    """
    if record.family == "metric":
        made = _extreme_embeddings(proxies)
    elif record.family == "preference":
        made = _extreme_pairs()
    else:
        made = _extreme_completions() if record.family == "unpaired" else _extreme_logits()
    for name, batch in made:
        yield name, batch.to(dtype)


def _extreme_logits() -> Iterator[tuple[str, Batch]]:
    far = [[1e4, -1e4, 0.0, 3.0], [-1e4, 1e4, 1e4, 0.0], [1e4, 1e4, 1e4, 1e4], [-1e4, -1e4, -1e4, -1e4]]
    sure = [[40.0, 0.0, 0.0, 0.0], [0.0, 200.0, 0.0, 1.0], [0.0, 1.0, 2.0, 30.0]]
    for name, rows, labels in (
        ("logits of +-1e4, labels right", far, [0, 1, 2, 3]),
        ("logits of +-1e4, labels wrong", far, [1, 0, 0, 0]),
        ("p that rounds to 1", sure, [0, 1, 3]),
        ("p that rounds to 0", sure, [2, 0, 0]),
        ("p that rounds to 0 and to 1", sure, [0, 0, 3]),
        ("a batch of one", [[0.3, -1.0, 2.0]], [1]),
        ("one class", [[3.0], [-2.0]], [0, 0]),
        ("one label for all rows", [[0.3, -1.0], [2.0, 0.1]], [1, 1]),
    ):
        yield name, Batch({"logits": torch.tensor(rows, dtype=torch.float64), "labels": torch.tensor(labels)})


def _extreme_embeddings(proxies: Tensor | None) -> Iterator[tuple[str, Batch]]:
    generator = torch.Generator().manual_seed(77)
    rows = torch.randn(6, DIM if proxies is None else proxies.shape[-1], generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    first = rows[:1].expand(6, -1)
    cases = {
        "embeddings of length 1e4": (1e4 * rows, labels),
        "embeddings of length 1e-4": (1e-4 * rows, labels),
        "embeddings of length 0": (0 * rows, labels),
        "embeddings that coincide": (first, labels),
        "embeddings opposite to each other": (first * torch.tensor([1.0, -1, 1, -1, 1, -1])[:, None], labels),
        "a batch of one": (rows[:1], labels[:1]),
        "one class": (rows, 0 * labels),
        "classes with a single row": (rows[:3], labels[:3]),
    }
    if proxies is not None:
        centres = proxies.detach().double()
        own = (centres[:, 0] if centres.ndim == 3 else centres)[labels.clamp(max=len(centres) - 1)]
        classes = labels.clamp(max=len(centres) - 1)
        cases["embeddings on their proxies"] = (own, classes)
        cases["embeddings opposite their proxies"] = (-own, classes)
        cases = {name: (rows, classes.clamp(max=len(centres) - 1)) for name, (rows, classes) in cases.items()}
    for name, (values, classes) in cases.items():
        yield name, Batch({"embeddings": values.clone(), "labels": classes})


def _extreme_pairs() -> Iterator[tuple[str, Batch]]:
    for name, rows in (
        ("margins of +-1e6", [[0, -1e6, -5, -5], [-1e6, 0, -5, -5], [-5, -5, 0, -1e6], [-5, -5, -1e6, 0]]),
        ("margins of +-1e4", [[-1, -1e4, -5, -5], [-1e4, -1, -5, -5], [-9e3, -1e3, -1, -2]]),
        ("margins of +-100", [[-1, -101, -5, -5], [-101, -1, -5, -5], [-7, -7, -99, -3]]),
        ("log-probabilities of -1e5", [[-1e5, -1e5, -1e5, -1e5], [-1e5, -3, -1e5, -3], [-3, -1e5, -3, -1e5]]),
        ("p that rounds to 1", [[0, 0, 0, 0], [0, -1e-9, -1, -1], [-1e-9, 0, -1, -1], [-20, 0, -1, -1]]),
        ("a batch of one", [[-7, -9, -6, -11]]),
        ("a batch of one, margin of -1e6", [[-1e6, 0, -5, -5]]),
        ("policy equal to reference", [[-7, -9, -7, -9], [-3, -2, -3, -2]]),
    ):
        columns = torch.tensor(rows, dtype=torch.float64).T
        names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
        lengths = 1 + 700 * (torch.arange(2 * len(rows)) % 3).double()
        inputs = dict(zip(names, columns.unbind(), strict=True))
        yield name, Batch({**inputs, "chosen_lengths": lengths[: len(rows)], "rejected_lengths": lengths[len(rows) :]})


def _extreme_completions() -> Iterator[tuple[str, Batch]]:
    for name, rows, kl in (
        ("log-ratios of +-1e6", [[0, -1e6], [-1e6, 0], [0, -1e6], [-1e6, 0]], 0.0),
        ("log-ratios of +-1e4", [[-3, -1e4], [-1e4, -3], [-3, -1e4], [-1e4, -3]], 1e4),
        ("log-ratios of +-100", [[-3, -100], [-100, -3], [-3, -100], [-100, -3]], 1.0),
        ("log-probabilities of -1e5", [[-1e5, -1e5], [-1e5, -1e5], [-1e5, -3], [-3, -1e5]], 1e6),
        ("p that rounds to 1", [[0, 0], [0, 0], [0, -20], [-20, 0]], -1.0),
        ("a batch of one", [[-7, -9]], 0.3),
        ("policy equal to reference", [[-7, -7], [-9, -9]], 0.0),
    ):
        ours, theirs = torch.tensor(rows, dtype=torch.float64).T.unbind()
        desirable = torch.arange(len(rows)) < (len(rows) + 1) // 2
        yield (
            name,
            Batch({"logps": ours, "ref_logps": theirs, "desirable": desirable, "kl": torch.tensor([kl]).double()}),
        )
