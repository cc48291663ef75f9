"""Typed changes of an expression: each returns an expression of the same type, or None where it does not apply."""

import random

from lossmith.discovery.program import OPERATORS, Node, ProgramError, const, make
from lossmith.discovery.proposers.grammar import COMPARED, ROUND, Grammar, pick, some_number
from lossmith.discovery.proposers.vocabulary import two_digits

Site = tuple[tuple[int, ...], Node]
"""Places of the arguments from the root down, and what is there."""
SWAPS = (
    ("add", "sub", "mul", "max", "min"),
    (*ROUND, "log1p", "expm1"),
    tuple(dict.fromkeys(COMPARED)),
    ("and", "or"),
    ("mean_batch", "std_batch", "var_batch"),
)
"""Operators that may stand for each other: same arguments, same type."""
_GROUP = {name: group for group in SWAPS for name in group}
MOST_KNOWN = 512
TAKES_APART = 0.1
"""How often a change looks into the natural variables."""


def sites(root: Node, whole: frozenset[Node] = frozenset()) -> list[Site]:
    """Every place but literal numbers, as a printer without names would write them; `whole` is not looked into."""
    found: list[Site] = []
    stack: list[Site] = [((), root)]
    while stack:
        path, node = stack.pop()
        found.append((path, node))
        if not node.args or node in whole:
            continue
        literal = OPERATORS[node.op].literal
        for place in range(len(node.args) - 1, -1, -1):
            if place not in literal:
                stack.append(((*path, place), node.args[place]))
    return found


def put(root: Node, path: tuple[int, ...], new: Node) -> Node:
    """The expression with another one at a place.

    Raises:
        ProgramError: If the place does not take it.
    """
    above: list[Node] = []
    node = root
    for place in path:
        above.append(node)
        node = node.args[place]
    for parent, place in zip(reversed(above), reversed(path), strict=True):
        new = make(parent.op, *parent.args[:place], new, *parent.args[place + 1 :])
    return new


class Variation:
    """The operators of genetic programming over one family's grammar."""

    def __init__(self, grammar: Grammar):
        self._grammar = grammar
        self._whole = grammar.words.whole()
        self._known: dict[Node, list[Site]] = {}

    def child(self, dice: random.Random, mother: Node, father: Node) -> Node | None:
        """One change drawn by its weight; None where it fails, or leaves the mother as she is."""
        kind = dice.random()
        try:
            if kind < 0.28:
                found = self.crossover(dice, mother, father)
            elif kind < 0.42:
                found = self.subtree(dice, mother)
            elif kind < 0.54:
                found = self.point(dice, mother)
            elif kind < 0.72:
                found = self.constant(dice, mother)
            elif kind < 0.79:
                found = self.hoist(dice, mother)
            elif kind < 0.93:
                found = self.gate(dice, mother)
            else:
                found = self.wrap(dice, mother)
        except ProgramError:
            return None
        return found if found is not mother else None

    def crossover(self, dice: random.Random, mother: Node, father: Node) -> Node | None:
        """A part of the father in the place of a part of the mother, of the same type."""
        path, node = pick(dice, self._sites(dice, mother))
        given = [part for _, part in self._sites(dice, father) if part.type == node.type and part is not node]
        return put(mother, path, pick(dice, given)) if given else None

    def subtree(self, dice: random.Random, mother: Node) -> Node | None:
        """A fresh part in the place of an old one."""
        path, node = pick(dice, self._sites(dice, mother))
        return put(mother, path, self._grammar.grow(dice, node.type, int(dice.random() * 3)))

    def point(self, dice: random.Random, mother: Node) -> Node | None:
        """Another operator on the same arguments."""
        places = [site for site in self._sites(dice, mother) if site[1].op in _GROUP]
        if not places:
            return None
        path, node = pick(dice, places)
        return put(mother, path, make(pick(dice, _GROUP[node.op]), *node.args))

    def constant(self, dice: random.Random, mother: Node) -> Node | None:
        """Another number: most often near the old one, now and then of the other sign or a fresh one."""
        places = numbers(mother)
        if not places:
            return None
        path, node = pick(dice, places)
        value, kind = float(node.value or 0.0), dice.random()
        if kind < 0.8 and value != 0:
            new = const(two_digits(value * 2.0 ** dice.gauss(0.0, 0.7)))
        elif kind < 0.9 and value != 0:
            new = const(-value)
        else:
            new = some_number(dice)
        return put(mother, path, new)

    def hoist(self, dice: random.Random, mother: Node) -> Node | None:
        """A part of the mother alone."""
        places = [node for path, node in self._sites(dice, mother) if path and node.type == mother.type and node.args]
        return pick(dice, places) if places else None

    def gate(self, dice: random.Random, mother: Node) -> Node | None:
        """A part whose force depends on the item."""
        places = [site for site in self._outer_sites(mother) if site[1].type == "item"]
        # The whole loss in half of the cases: that is what a gate is for.
        path, node = places[0] if places and dice.random() < 0.5 else pick(dice, places)
        return put(mother, path, self._grammar.gated(dice, node))

    def wrap(self, dice: random.Random, mother: Node) -> Node | None:
        """A function around a part."""
        places = [site for site in self._sites(dice, mother) if site[1].type in ("item", "table")]
        path, node = pick(dice, places)
        return put(mother, path, make(pick(dice, ROUND), node))

    def _sites(self, dice: random.Random, root: Node) -> list[Site]:
        return sites(root) if dice.random() < TAKES_APART else self._outer_sites(root)

    def _outer_sites(self, root: Node) -> list[Site]:
        """Places outside of the natural variables; kept, since a few parents have thousands of children."""
        found = self._known.get(root)
        if found is None:
            found = sites(root, self._whole)
            if len(self._known) < MOST_KNOWN:
                self._known[root] = found
        return found


def numbers(root: Node) -> list[Site]:
    """Every finite constant, literal ones too."""
    found: list[Site] = []
    stack: list[Site] = [((), root)]
    while stack:
        path, node = stack.pop()
        if node.op == "const" and abs(float(node.value or 0.0)) != float("inf"):
            found.append((path, node))
        for place in range(len(node.args) - 1, -1, -1):
            stack.append(((*path, place), node.args[place]))
    return found
