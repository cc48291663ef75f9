"""What each family's losses are made of: natural variables, how they are scaled, and which shapes pull the right way.

A search that combines bare inputs finds `chosen_logps * rejected_lengths` a thousand times before it finds the margin
of log-ratios. So the variables that people write losses in are atoms here, and typed operators combine them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from lossmith.discovery.program import Node, const, inputs_of, make


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The atoms of a family."""

    family: str
    margin: Node
    """Number per item that is higher where the model does better: rho, the label's log-odds, or near minus far."""
    scale: tuple[float, float]
    """Range of the factor before it, drawn uniformly in its logarithm."""
    atoms: tuple[tuple[Node, int, tuple[float, float]], ...]
    """Numbers per item: expression, weight, range of the factor before it."""
    tables: tuple[Node, ...] = ()
    """Numbers per anchor and candidate."""
    table_masks: tuple[Node, ...] = ()
    """Booleans per anchor and candidate."""

    def whole(self) -> frozenset[Node]:
        """Expressions that variation rarely takes apart."""
        return frozenset(atom for atom, _, _ in self.atoms)


@cache
def vocabulary(family: str) -> Vocabulary:
    """The vocabulary of a family.

    Raises:
        ProgramError: For a family that discovery does not serve.
    """
    inputs = inputs_of(family)
    if family == "preference":
        return _preference(inputs)
    return _token(inputs) if family == "token" else _metric(inputs)


def _preference(x: dict[str, Node]) -> Vocabulary:
    policy = make("sub", x["chosen_logps"], x["rejected_logps"])
    rho = make("sub", policy, make("sub", x["ref_chosen_logps"], x["ref_rejected_logps"]))
    chosen = make("sub", x["chosen_logps"], x["ref_chosen_logps"])
    rejected = make("sub", x["rejected_logps"], x["ref_rejected_logps"])
    per_token = make(
        "sub",
        make("div", x["chosen_logps"], x["chosen_lengths"]),
        make("div", x["rejected_logps"], x["rejected_lengths"]),
    )
    longer = make("sub", x["chosen_lengths"], x["rejected_lengths"])
    ratio = (0.01, 1.0)
    atoms = (
        (rho, 12, ratio),
        (chosen, 2, ratio),
        (rejected, 2, ratio),
        (policy, 2, ratio),
        (per_token, 1, (0.5, 10.0)),
        (longer, 1, (0.003, 0.1)),
    )
    return Vocabulary(family="preference", margin=rho, scale=ratio, atoms=atoms)


def _token(x: dict[str, Node]) -> Vocabulary:
    logps = x["token_logps"]
    probability, rest = make("exp", logps), make("neg", make("expm1", logps))
    odds = make("sub", logps, x["complement_logps"])
    near = (0.3, 3.0)
    atoms = (
        (logps, 8, near),
        (probability, 4, near),
        (rest, 4, near),
        (odds, 2, near),
        (x["complement_logps"], 1, near),
        (x["entropy"], 2, (0.1, 1.0)),
        (x["max_logps"], 1, near),
        (x["log_sum_sq_probs"], 1, near),
        (x["log_normalizer"], 1, (0.01, 0.1)),
    )
    return Vocabulary(family="token", margin=odds, scale=near, atoms=atoms)


def _metric(x: dict[str, Node]) -> Vocabulary:
    near = make("mean_masked", x["similarities"], x["same"])
    far = make("mean_masked", x["similarities"], x["different"])
    margin, sharp = make("sub", near, far), (1.0, 30.0)
    atoms = (
        (margin, 6, sharp),
        (near, 3, sharp),
        (far, 3, sharp),
        (make("mean_masked", x["distances"], x["same"]), 1, (0.5, 5.0)),
        (make("mean_masked", x["distances"], x["different"]), 1, (0.5, 5.0)),
    )
    return Vocabulary(
        family="metric",
        margin=margin,
        scale=sharp,
        atoms=atoms,
        tables=(x["similarities"], x["distances"]),
        table_masks=(x["same"], x["different"]),
    )


def scaled(dice: random.Random, atom: Node, scale: Sequence[float]) -> Node:
    """A factor times an atom."""
    low, high = scale
    return make("mul", const(two_digits(low * (high / low) ** dice.random())), atom)


def two_digits(value: float) -> float:
    """The value to two significant digits: constants that a person would write.

    Example:
        >>> two_digits(0.0123), two_digits(-217.0)
        (0.012, -220.0)
    """
    return float(f"{value:.2g}")
