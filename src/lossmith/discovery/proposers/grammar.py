"""Random expressions over the typed grammar: ramped half-and-half, half of them with the shape of a loss.

Every draw is by a `random.Random` whose seed came from the run's counter-based generators.
"""

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from lossmith.discovery.program import Node, const, make
from lossmith.discovery.proposers.vocabulary import Vocabulary, scaled, two_digits, vocabulary

T = TypeVar("T")
ROUND = ("tanh", "sigmoid", "softplus", "logsigmoid", "relu", "abs", "square", "erf", "atan", "neg")
"""Functions of one number that are finite wherever it is."""
STEEP = ("exp", "expm1")
"""Those that overflow; rare, and only over what is scaled down."""
MIXED = ("add", "add", "sub", "sub", "mul", "mul", "max", "min")
COMPARED = ("lt", "gt", "lt", "gt", "le", "ge")
_ONE, _HALF = const(1), const(0.5)


def some_number(dice: random.Random) -> Node:
    """A constant: often a round one, else of either sign and any size from 0.05 to 5."""
    if dice.random() < 0.4:
        return const(pick(dice, (0.5, 1.0, 2.0, 0.1, -1.0)))
    value = 0.05 * 100 ** dice.random()
    return const(two_digits(value if dice.random() < 0.75 else -value))


def pick(dice: random.Random, options: Sequence[T]) -> T:
    """One of them."""
    return options[int(dice.random() * len(options))]


class Grammar:
    """Draws expressions of a family and of any type."""

    def __init__(self, family: str):
        self.words: Vocabulary = vocabulary(family)
        self._atoms = [place for place, (_, weight, _) in enumerate(self.words.atoms) for _ in range(weight)]
        self._rules: dict[str, Callable[[random.Random, int, bool], Node]] = {
            "item": self.item,
            "mask": self.mask,
            "scalar": self.scalar,
            "table": self.table,
            "table_mask": self.table_mask,
            "flag": self.flag,
        }

    def ramped(self, dice: random.Random) -> Node:
        """A number per item, ramped: half by the shapes of losses, half by the bare grammar; half full, half grown."""
        full, depth = dice.random() < 0.5, int(dice.random() * 4)
        if dice.random() < 0.5:
            return self.item(dice, depth + 1, full)
        return self.loss(dice, depth - 1, full)

    def grow(self, dice: random.Random, type: str, depth: int, full: bool = False) -> Node:
        """An expression of a type."""
        return self._rules[type](dice, depth, full)

    def atom(self, dice: random.Random) -> Node:
        """A scaled natural variable."""
        place = pick(dice, self._atoms)
        atom, _, scale = self.words.atoms[place]
        return scaled(dice, atom, scale)

    def margin(self, dice: random.Random) -> Node:
        """The scaled margin, now and then moved."""
        x = scaled(dice, self.words.margin, self.words.scale)
        return make("sub", x, some_number(dice)) if dice.random() < 0.2 else x

    def loss(self, dice: random.Random, depth: int, full: bool = False) -> Node:
        """A shape that falls with the margin, gated or blended `depth` times over."""
        if depth <= 0 or (not full and dice.random() < 0.3):
            return falling(dice, self.margin(dice))
        kind, below = dice.random(), depth - 1
        first = self.loss(dice, below, full)
        if kind < 0.35:
            return self.gated(dice, first)
        other = self.loss(dice, below, full)
        if kind < 0.6:
            gate = self.gate(dice)
            return make("add", make("mul", gate, first), make("mul", make("sub", _ONE, gate), other))
        if kind < 0.8:
            return make("where", self.mask(dice, 0, full), first, other)
        return make("add", first, make("mul", const(two_digits(dice.random())), other))

    def gate(self, dice: random.Random) -> Node:
        """A number in [0, 1] per item."""
        x = self.margin(dice) if dice.random() < 0.6 else self.atom(dice)
        kind = dice.random()
        if kind < 0.25:
            x = make("neg", x)
        elif kind < 0.4:
            x = make("neg", make("abs", x))
        gate = make("sigmoid", x)
        return make("detach", gate) if dice.random() < 0.2 else gate

    def gated(self, dice: random.Random, body: Node) -> Node:
        """A body whose force depends on the item."""
        kind = dice.random()
        if kind < 0.5:
            return make("mul", self.gate(dice), body)
        factor = make("mul", const(two_digits(0.1 + 1.4 * dice.random())), body)
        if kind < 0.75:
            return make("where", self.mask(dice, 0, False), factor, body)
        return make("mul", make("add", const(two_digits(dice.random())), self.gate(dice)), body)

    def item(self, dice: random.Random, depth: int, full: bool) -> Node:
        """A number per item."""
        if depth <= 0 or (not full and dice.random() < 0.15):
            return self.atom(dice)
        kind, below = dice.random(), depth - 1
        if kind < 0.34:
            return make(pick(dice, ROUND), self.item(dice, below, full))
        if kind < 0.37:
            return make(pick(dice, STEEP), self.atom(dice))
        if kind < 0.62:
            return make(pick(dice, MIXED), self.item(dice, below, full), self.item(dice, below, full))
        if kind < 0.74:
            op = pick(dice, ("add", "sub", "mul", "max"))
            return make(op, self.item(dice, below, full), self.scalar(dice, below, full))
        if kind < 0.82:
            branches = self.item(dice, below, full), self.item(dice, below, full)
            return make("where", self.mask(dice, below, full), *branches)
        if self.words.tables and kind < 0.92:
            return make("mean_masked", self.table(dice, below, full), self.table_mask(dice, min(below, 1), full))
        return self._rare(dice, below, full)

    def _rare(self, dice: random.Random, below: int, full: bool) -> Node:
        x, kind = self.item(dice, below, full), dice.random()
        if kind < 0.2:
            return make("log1p", make("abs", x))
        if kind < 0.35:
            return make("sqrt", make("add", _ONE, make("square", x)))
        if kind < 0.55:
            return make("div", x, make("add", _ONE, make("abs", self.atom(dice))))
        if kind < 0.75:
            return make("clamp", x, const(pick(dice, (-5.0, -1.0, 0.0))), const(pick(dice, (1.0, 5.0, float("inf")))))
        if kind < 0.9:
            return make("mul", make("cast", self.mask(dice, min(below, 1), full)), x)
        return make("mul", make("detach", make("sigmoid", self.atom(dice))), x)

    def mask(self, dice: random.Random, depth: int, full: bool) -> Node:
        """A boolean per item."""
        if depth > 1 and dice.random() < 0.15:
            parts = self.mask(dice, depth - 1, full), self.mask(dice, depth - 1, full)
            return make(pick(dice, ("and", "or")), *parts)
        left = self.item(dice, depth - 1, full) if depth > 1 else self.atom(dice)
        return make(pick(dice, COMPARED), left, const(0) if dice.random() < 0.4 else self.scalar(dice, 0, full))

    def scalar(self, dice: random.Random, depth: int, full: bool) -> Node:
        """A number for the batch: a constant, or what the batch says."""
        if depth <= 0 or dice.random() < 0.75:
            return some_number(dice)
        op = pick(dice, ("mean_batch", "mean_batch", "std_batch", "var_batch"))
        return make(op, self.item(dice, min(depth - 1, 1), False))

    def flag(self, dice: random.Random, depth: int, full: bool) -> Node:
        """A boolean for the batch."""
        return make(pick(dice, COMPARED), make("mean_batch", self.atom(dice)), some_number(dice))

    def table(self, dice: random.Random, depth: int, full: bool) -> Node:
        """A number per anchor and candidate."""
        if depth <= 0 or dice.random() < 0.3:
            return make("mul", const(two_digits(0.5 * 40 ** dice.random())), pick(dice, self.words.tables))
        kind, below = dice.random(), depth - 1
        if kind < 0.6:
            return make(pick(dice, ROUND), self.table(dice, below, full))
        if kind < 0.8:
            return make("add", self.table(dice, below, full), some_number(dice))
        if kind < 0.9:
            return make("sub", self.table(dice, below, full), self.item(dice, min(below, 1), full))
        return make("mul", self.table(dice, below, full), self.table(dice, 0, full))

    def table_mask(self, dice: random.Random, depth: int, full: bool) -> Node:
        """A boolean per anchor and candidate."""
        mask = pick(dice, self.words.table_masks)
        if depth > 0 and dice.random() < 0.2:
            return make("and", mask, make(pick(dice, COMPARED), self.table(dice, 0, full), some_number(dice)))
        return mask


@cache
def grammar(family: str) -> Grammar:
    """The grammar of a family."""
    return Grammar(family)


def falling(dice: random.Random, x: Node) -> Node:
    """One of the shapes that people use to make a number grow."""
    kind = int(dice.random() * 10)
    if kind < 3:
        return make("softplus", make("neg", x))
    if kind == 3:
        return make("relu", make("sub", _ONE, x))
    if kind == 4:
        return make("square", make("sub", x, const(two_digits(0.5 + 2 * dice.random()))))
    if kind == 5:
        return make("exp", make("neg", x))
    if kind == 6:
        return make("sigmoid", make("neg", x))
    if kind == 7:
        return make("neg", make(pick(dice, ("tanh", "atan", "erf")), x))
    if kind == 8:
        smoothing = const(two_digits(0.01 + 0.2 * dice.random()))
        return make("add", make("softplus", make("neg", x)), make("mul", smoothing, x))
    return make("square", make("relu", make("sub", _ONE, x)))
