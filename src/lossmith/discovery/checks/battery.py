"""The hard checks, one function each: a sentence where the rule is broken, None where it is kept."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from lossmith.discovery.checks import points
from lossmith.discovery.checks.poles import breakdown
from lossmith.discovery.identity.probes import Probes, probes
from lossmith.discovery.program import ITEM, WORDS, Program, order, torch_function
from lossmith.discovery.program.arrays import Array
from lossmith.discovery.program.differentiate import value_and_gradients

DIRECTION = -0.1
"""Mean over mean absolute gradient along the margin: DPO has -1, IPO -0.2 to -0.5, LRML -0.7 to -0.95, a
straight-through cheat +1."""
LABELS = {"preference": 0.01, "token": 0.05, "metric": 0.05}
"""Least difference that other labels make to the gradient, of its length: published losses have 0.5 and more. A shared
push of both completions may be larger than what tells them apart; along the margin, `DIRECTION` holds."""
LARGEST = 1e304
"""Of losses and gradients at ordinary inputs: their sums and squared lengths must be numbers too."""
STILL = 1e-9
"""A gradient this small beside that of a hundredth of a nat away is zero but for rounding."""


@dataclass
class Candidate:
    """A program under check, with what several checks look at."""

    program: Program
    direction: bool = True
    """Whether it must push the right way; a penalty that is added to a loss need not."""
    seeds: tuple[int, ...] = ()
    """Of a run's secret points, at which the direction is looked at too."""

    @cached_property
    def ordinary(self) -> tuple[Array, dict[str, Array]]:
        """Value and gradients at the public probe points."""
        return self.at(points.ordinary(self.program.family))

    @cached_property
    def scattered(self) -> list[tuple[Probes, dict[str, Array]]]:
        """Gradients of pairs whose references, lengths and shifts are drawn at random, the run's own among them."""
        return [(where, self.at(where)[1]) for where in map(points.scattered, (0, *self.seeds))]

    def at(self, where: Probes) -> tuple[Array, dict[str, Array]]:
        """Value and gradients of everything that is trained."""
        return value_and_gradients(self.program.literal_root, where.inputs, where.trained)

    @cached_property
    def holds(self) -> bool:
        """Whether something is held constant by `detach`."""
        return any(node.op == "detach" for node in order(self.program.root))

    @cached_property
    def spreads(self) -> bool:
        """Whether it reads a spread over the batch, whose divisor n - 1 sees the size of the batch."""
        return any(node.op in ("var_batch", "std_batch") for node in order(self.program.root))

    @cached_property
    def function(self) -> Callable[..., torch.Tensor]:
        """The torch function that would be trained."""
        return torch_function(self.program)

    @property
    def item(self) -> str:
        """`pair`, `token` or `anchor`."""
        return ITEM[self.program.family]


def value_type(candidate: Candidate) -> tuple[str, str] | None:
    """One number per item."""
    kind = candidate.program.root.type
    if kind == "item":
        return None
    category = "bad-type" if kind in ("flag", "mask", "table_mask") else "shape"
    hint = " Leave the mean to the trainer." if kind == "scalar" and candidate.program.inputs else ""
    return category, f"It gives {WORDS[kind]} where a number per {candidate.item} is needed.{hint}"


def ordinary_values(candidate: Candidate) -> tuple[str, str] | None:
    """Finite value and gradient at ordinary inputs, and so are their sums."""
    broken = _unless_finite(*candidate.ordinary, where="at ordinary inputs")
    if broken:
        return broken
    value, gradients = candidate.ordinary
    if max(float(np.abs(part).max()) for part in (value, *gradients.values())) > LARGEST:
        return "nonfinite", f"Its value or gradient is beyond {LARGEST:.0e} at ordinary inputs: sums of it overflow."
    return None


def has_gradient(candidate: Candidate) -> tuple[str, str] | None:
    """A path from the value to something that is trained."""
    if candidate.ordinary[1]:
        return None
    names = " or ".join(f"`{name}`" for name in points.ordinary(candidate.program.family).trained)
    return "no-grad", f"No gradient reaches {names}."


def gradient_is_not_zero(candidate: Candidate) -> tuple[str, str] | None:
    """A gradient that is not zero everywhere."""
    where = points.ordinary(candidate.program.family)
    if np.any(where.chained(candidate.ordinary[1])):
        return None
    return "zero-grad", "The gradient is zero at every ordinary input."


def one_item_alone(candidate: Candidate) -> tuple[str, str] | None:
    """Finite for a batch of one item."""
    found = candidate.at(points.alone(candidate.program.family))
    hint = " A spread over one item is 0: do not divide by it." if candidate.spreads else ""
    return _unless_finite(*found, where=f"for a batch of one {candidate.item}", hint=hint)


def the_ends(candidate: Candidate) -> tuple[str, str] | None:
    """Finite at the ends of what the family can meet, in float64."""
    said = {
        "preference": f"where a log-probability is {points.REACH:.0f} nats or less from its reference",
        "token": "where a probability rounds to 0 or 1",
        "metric": "where a class has one row, or all rows are of one class",
    }[candidate.program.family]
    for where in points.far(candidate.program.family):
        broken = _unless_finite(*candidate.at(where), where=said)
        if broken:
            return broken
    return None


def the_edges(candidate: Candidate) -> tuple[str, str] | None:
    """Finite for the shortest completions, for shifted logits, and where a batch holds one text twice."""
    for edge in points.edges(candidate.program.family):
        if not set(edge.reads).isdisjoint(candidate.program.inputs):
            broken = _unless_finite(*candidate.at(edge.where), where=edge.said)
            if broken:
                return broken
    return None


def inside_the_reach(candidate: Candidate) -> tuple[str, str] | None:
    """Finite between the ends too, and without a pole, along the margin of pairs and along their sum."""
    if candidate.program.family != "preference":
        return None
    found = breakdown(candidate.program.literal_root)
    return None if found is None else ("nonfinite", f"Its {found[1]} at {found[2]} of {found[0]:.4g} nats.")


def _unless_finite(value: Array, gradients: dict[str, Array], *, where: str, hint: str = "") -> tuple[str, str] | None:
    if not np.isfinite(value).all():
        return "nonfinite", f"Its value is not finite {where}.{hint}"
    for name, gradient in gradients.items():
        if not np.isfinite(gradient).all():
            return "nonfinite", f"Its gradient with respect to `{name}` is not finite {where}.{hint}"
    return None


def reads_the_labels(candidate: Candidate) -> tuple[str, str] | None:
    """Swapped sides, other labels of the same tokens or other classes of the same rows give another gradient."""
    if not candidate.direction:
        return None
    family = candidate.program.family
    if family == "preference":
        pairs = [_both_ways(where, gradients) for where, gradients in candidate.scattered]
    else:
        one, other = (where.chained(candidate.at(where)[1]) for where in points.relabelled(family))
        pairs = [(one, other)]
    for one, other in pairs:
        with np.errstate(all="ignore"):
            highest = max(float(np.abs(one).max()), float(np.abs(other).max()))
            one, other = one / highest, other / highest
            alike = np.linalg.norm(one - other) < LABELS[family] * max(np.linalg.norm(one), np.linalg.norm(other))
        if alike:
            return "wrong-sign", f"It pulls the same way{_WHATEVER[family]}."
    return None


_WHATEVER = {
    "preference": ", or nearly so, whichever completion is the chosen one",
    "token": ", or nearly so, whatever the labels of the tokens are",
    "metric": ", or nearly so, whatever the classes of the rows are",
}


def _both_ways(where: Probes, gradients: dict[str, Array]) -> tuple[Array, Array]:
    """Gradients of the same completions as they are, and with their sides swapped."""
    zero = np.zeros(where.inputs["chosen_logps"].shape)
    chosen, rejected = (gradients.get(name, zero) for name in where.trained)
    half = where.inputs["chosen_logps"].shape[1] // 2
    return (
        np.concatenate([chosen[:, :half].ravel(), rejected[:, :half].ravel()]),
        np.concatenate([rejected[:, half:].ravel(), chosen[:, half:].ravel()]),
    )


def right_direction(candidate: Candidate) -> tuple[str, str] | None:
    """Descent widens the margin (pairs), lifts the label (tokens), draws the class together (tables), on the whole."""
    if not candidate.direction:
        return None
    pushes = DIRECTIONS[candidate.program.family](candidate)
    for where, push in pushes:
        if not np.isfinite(push):
            return "nonfinite", f"Its gradient is not finite {where}."
        if not push <= DIRECTION:
            return (
                "wrong-sign",
                f"Its gradient has the wrong sign or none {where}: {push:+.2f}, at most -0.1 is needed.",
            )
    return None


def _along_margins(candidate: Candidate) -> list[tuple[str, float]]:
    scattered = " with references, lengths and shifts of both sides drawn at random"
    found: list[tuple[str, float]] = []
    even = points.antithetic()
    for where, gradients, drawn in (
        (even, candidate.at(even)[1], ""),
        *((where, gradients, scattered) for where, gradients in candidate.scattered),
    ):
        zero = np.zeros(where.inputs["chosen_logps"].shape)
        along = (gradients.get("chosen_logps", zero) - gradients.get("rejected_logps", zero)) / 2
        found += [
            (f"along margins of {spread:.0f} nats{drawn}", _share(along[place]))
            for place, spread in enumerate(points.MARGIN_SPREADS)
        ]
    return found


def _along_labels(candidate: Candidate) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for where in _of_seeds(candidate):
        assert where.labels is not None
        slopes = where.chained(candidate.at(where)[1]).reshape(where.labels.shape)
        own = slopes[where.labels == 1]
        behind = (where.inputs["max_logps"] > where.inputs["token_logps"] + 1e-9).ravel()
        found.append(("along the logit of the label", _share(own)))
        found.append(("along the logit of the label where another class leads", _share(own[behind])))
    return found


def _along_classes(candidate: Candidate) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for where in _of_seeds(candidate):
        slopes = where.chained(candidate.at(where)[1]).reshape(where.inputs["similarities"].shape)
        found.append(("between rows of one class and of others", _push(slopes, where)))
    return found


def _push(slopes: Array, where: Probes) -> float:
    """The share of both sides, each counted as a half: there are more rows of other classes than of the own."""
    sides = slopes[where.inputs["same"]], -slopes[where.inputs["different"]]
    size = sum(float(np.abs(side).mean()) for side in sides)
    return sum(float(side.mean()) for side in sides) / size if size > 0 else 0.0


def _of_seeds(candidate: Candidate) -> list[Probes]:
    family = candidate.program.family
    return [points.ordinary(family), *(probes(family, seed) for seed in candidate.seeds)]


DIRECTIONS: dict[str, Callable[[Candidate], list[tuple[str, float]]]] = {
    "preference": _along_margins,
    "token": _along_labels,
    "metric": _along_classes,
}


def _share(slopes: Array) -> float:
    size = float(np.abs(slopes).mean())
    return float(slopes.mean()) / size if size > 0 else 0.0


def moves_at_the_reference(candidate: Candidate) -> tuple[str, str] | None:
    """A gradient where the policy is the reference, for losses that read one: every training begins there."""
    if not candidate.direction or not any(name.startswith("ref_") for name in candidate.program.inputs):
        return None
    value, gradients = candidate.at(points.at_the_reference())
    broken = _unless_finite(value, gradients, where=f"where {_SAME}")
    if broken:
        return broken
    start, near = (max(float(np.abs(part[batch]).max()) for part in gradients.values()) for batch in (0, 1))
    if start > STILL * near:
        return None
    return "zero-grad", f"Its gradient is zero where {_SAME}, so a training that begins there never moves."


_SAME = "the policy is the reference"


def pure(candidate: Candidate) -> tuple[str, str] | None:
    """The same twice, and inputs as they were."""
    given = tensors_of(candidate, 2)
    before = {name: value.clone() for name, value in given.items()}
    first, second = candidate.function(**given), candidate.function(**given)
    if not torch.equal(first, second):
        return "impure", "Two calls on the same inputs differ."
    if not all(torch.equal(given[name], value) for name, value in before.items()):
        return "impure", "It changes its inputs."
    return None


def equivariant(candidate: Candidate) -> tuple[str, str] | None:
    """Shuffled items give shuffled losses; without coupling, what else is in the batch changes nothing."""
    given = tensors_of(candidate, 2)
    whole = candidate.function(**given)
    turned = torch.arange(len(whole)).flip(0)
    shuffled = candidate.function(**{name: _picked(value, turned, candidate) for name, value in given.items()})
    size = float(whole.abs().max()) + 1e-30
    if not torch.allclose(shuffled, whole[turned], rtol=1e-9, atol=1e-12 * size):
        return "not-equivariant", f"Its value depends on the order of the {candidate.item}s."
    if candidate.program.batch_coupled:
        return None
    some = torch.arange(0, len(whole), 2)
    fewer = candidate.function(**{name: _picked(value, some, candidate) for name, value in given.items()})
    if not torch.allclose(fewer, whole[some], rtol=1e-9, atol=1e-12 * size):
        return "not-equivariant", f"What else is in the batch changes the loss of a {candidate.item}."
    return None


def duplicates_with_its_batch(candidate: Candidate) -> bool:
    """Whether a batch that holds everything twice gives every loss twice; the n - 1 divisor breaks it."""
    if candidate.program.family == "metric":
        return True
    given = tensors_of(candidate, 2)
    whole = candidate.function(**given)
    twice = torch.arange(len(whole)).repeat(2)
    doubled = candidate.function(**{name: _picked(value, twice, candidate) for name, value in given.items()})
    return bool(torch.allclose(doubled, whole.repeat(2), rtol=1e-9, atol=1e-12 * float(whole.abs().max())))


def tensors_of(candidate: Candidate, batch: int) -> dict[str, torch.Tensor]:
    """What a candidate reads of one batch of the probe points, as torch has it."""
    given = points.ordinary(candidate.program.family).tensors(batch)
    return {name: given[name] for name in candidate.program.inputs}


def _picked(value: torch.Tensor, rows: torch.Tensor, candidate: Candidate) -> torch.Tensor:
    if value.dim() == 0:
        return value
    if candidate.program.family == "metric":
        return value[rows][:, rows]
    return value[rows]


CHECKS: dict[str, Callable[[Candidate], tuple[str, str] | None]] = {
    "value_type": value_type,
    "ordinary_values": ordinary_values,
    "has_gradient": has_gradient,
    "gradient_is_not_zero": gradient_is_not_zero,
    "one_item_alone": one_item_alone,
    "the_ends": the_ends,
    "the_edges": the_edges,
    "inside_the_reach": inside_the_reach,
    "reads_the_labels": reads_the_labels,
    "right_direction": right_direction,
    "moves_at_the_reference": moves_at_the_reference,
    "pure": pure,
    "equivariant": equivariant,
}
"""The hard checks in the order in which they run; the first that fails decides. Slopes are compared behind them."""
