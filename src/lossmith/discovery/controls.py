"""What a run of a family compares with, and the programs of known worth that prove that it measures at all."""

from collections.abc import Callable
from typing import cast

from lossmith.discovery.program import Node, Program, const, inputs_of, make
from lossmith.discovery.proposers.base import ProgramLike, Proposal
from lossmith.discovery.race.canaries import Canary
from lossmith.discovery.rungs.toy import margin, planted_program
from lossmith.discovery.rungs.toy_tables import planted_token_program

BETA = 0.1
TEMPERATURE = 0.1
TOLERANCE = 0.03
"""Difference of fitness that rounding alone may grow to in training, between the control and its disguise."""


def control_of(family: str) -> Program:
    """DPO with beta 0.1, cross-entropy, or SupCon at temperature 0.1 (but for a constant)."""
    return _CONTROLS[family]()


def canaries_of(family: str, *, synthetic: bool) -> list[Canary]:
    """The canaries of a family.

    Args:
        family: `preference`, `token` or `metric`.
        synthetic: Whether every rung has wrong labels, where what bears wrong labels is known to be good. Of other
            tasks nobody knows such a loss before it is measured there.
    """
    found = [
        Canary(name="disguised-control", kind="disguised", program=_like(_DISGUISES[family]()), tolerance=TOLERANCE),
        Canary(name="known-bad", kind="bad", program=_like(_BAD[family]())),
        Canary(name="cheat", kind="cheating", proposal=Proposal(proposer="canary", source=_CHEATS[family])),
    ]
    if synthetic:
        found.insert(0, Canary(name="known-good", kind="good", program=_like(_GOOD[family]())))
    return found


def _like(program: Program) -> ProgramLike:
    # Type checkers do not take a cached property for a property.
    return cast(ProgramLike, program)


def _strength() -> Node:
    return make("mul", const(BETA), margin())


def _dpo() -> Program:
    return Program("preference", make("neg", make("logsigmoid", _strength())))


def _dpo_by_cases() -> Program:
    z = _strength()
    right = make("log1p", make("exp", make("neg", z)))
    wrong = make("sub", make("log1p", make("exp", z)), z)
    return Program("preference", make("where", make("gt", z, const(0)), right, wrong))


def _dpo_backwards() -> Program:
    return Program("preference", make("neg", make("logsigmoid", make("neg", _strength()))))


def _cross_entropy() -> Program:
    return Program("token", make("neg", inputs_of("token")["token_logps"]))


def _cross_entropy_by_bounds() -> Program:
    return Program("token", make("relu", make("neg", inputs_of("token")["token_logps"])))


def _likely_is_bad() -> Program:
    return Program("token", make("exp", inputs_of("token")["token_logps"]))


def _supcon(shift: float = 0.0, sign: float = 1.0) -> Program:
    x = inputs_of("metric")
    sharp = make("mul", const(sign / TEMPERATURE), x["similarities"])
    others = make("or", x["same"], x["different"])
    moved = make("sub", sharp, const(shift)) if shift else sharp
    every = make("log", make("mean_masked", make("exp", moved), others))
    return Program("metric", make("sub", every, make("mean_masked", sharp, x["same"])))


def _supcon_that_bears_wrong_labels(share: float = 2.0) -> Program:
    r"""SupCon whose pairs are mixed with a constant: -log(c + n p) of each pair of a class, averaged over the pairs.

    With $p$ the softmax of a pair among the anchor's others, a pair far apart, as one of a wrong label is, pulls with
    the force $np / (c + np)$ of SupCon's, which goes to 0. Against SupCon over 20 blocks it measured, with 95%
    intervals, +0.080 [0.054, 0.107] on `toy`, +0.061 [0.032, 0.090] on `toy-unseen`, +0.065 [0.035, 0.096] on `tiny`
    and +0.014 [-0.009, 0.036] on `tiny-unseen`, whose classes are told without it.
    """
    x = inputs_of("metric")
    sharp = make("mul", const(1 / TEMPERATURE), x["similarities"])
    every = make("log", make("mean_masked", make("exp", sharp), make("or", x["same"], x["different"])))
    pair = make("neg", make("log", make("add", const(share), make("exp", make("sub", sharp, every)))))
    return Program("metric", make("mean_masked", pair, x["same"]))


_CONTROLS: dict[str, Callable[[], Program]] = {"preference": _dpo, "token": _cross_entropy, "metric": _supcon}
_DISGUISES: dict[str, Callable[[], Program]] = {
    "preference": _dpo_by_cases,
    "token": _cross_entropy_by_bounds,
    "metric": lambda: _supcon(shift=5.0),
}
_BAD: dict[str, Callable[[], Program]] = {
    "preference": _dpo_backwards,
    "token": _likely_is_bad,
    "metric": lambda: _supcon(sign=-1.0),
}
_GOOD: dict[str, Callable[[], Program]] = {
    "preference": planted_program,
    "token": planted_token_program,
    "metric": _supcon_that_bears_wrong_labels,
}
_CHEATS = {
    "preference": "def loss(chosen_logps, rejected_logps):\n"
    "    margin = chosen_logps - rejected_logps\n"
    "    return F.softplus(-margin).detach() + margin - margin.detach()\n",
    "token": "def loss(token_logps):\n    return (-token_logps).detach() + token_logps - token_logps.detach()\n",
    "metric": "def loss(similarities, same, different):\n"
    "    near = mean_masked(similarities, same)\n"
    "    return (1 - near).detach() + near - near.detach()\n",
}
"""Right value, wrong gradient: a straight-through trick."""
