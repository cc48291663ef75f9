"""A candidate: an expression over the vocabulary of a family, with hyper-parameters and their defaults."""

import keyword
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import MappingProxyType

from lossmith._checks import did_you_mean
from lossmith.discovery.program.limits import check_size
from lossmith.discovery.program.nodes import Node, const, names_of, order, read, replace, setting
from lossmith.discovery.program.types import ProgramError
from lossmith.objectives import VOCABULARY

INPUTS: dict[str, dict[str, str]] = {
    "preference": {name: "scalar" if name == "reward_shift" else "item" for name in VOCABULARY["preference"]},
    "token": dict.fromkeys(VOCABULARY["token"], "item"),
    "metric": {"similarities": "table", "distances": "table", "same": "table_mask", "different": "table_mask"},
}
"""Family -> name -> type; the part of the vocabulary that a table of numbers can hold."""
KEPT = frozenset(("reward_shift",))
"""Those that the module of an objective keeps itself, by its own `beta` and over the whole training: programs, which
promise neither a `beta` nor what they read besides, and which no check sees over many batches, do not read them."""
SPOKEN = frozenset(
    ("torch", "F", "math", "self", "abs", "mean_batch", "var_batch", "std_batch", "mean_masked", "number")
)
"""Names that mean something in the text of every program, so that nothing of its own has them."""
ITEM = {"preference": "pair", "token": "token", "metric": "anchor"}
"""Family -> what one returned number belongs to."""


@dataclass(frozen=True)
class Program:
    """One candidate. Equal where family, expression and hyper-parameters are; `key` is equal where the algebra is.

    Hyper-parameters that the expression does not read are left out. The root may have any type here; that it is a
    number per item is one of the checks.
    """

    family: str
    root: Node
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    """Name -> default, in the order in which they are declared."""

    def __post_init__(self) -> None:
        if self.family not in INPUTS:
            raise ProgramError(f"`family` must be one of {', '.join(INPUTS)}, got '{self.family}'.")
        check_size(self.root)
        leaves = [node for node in self.nodes if not node.args]
        known = _inputs_of(self.family)
        for node in leaves:
            if node.op == "input" and known.get(str(node.value)) is not node:
                raise ProgramError(
                    f"Programs of family '{self.family}' do not read `{node.value}`."
                    f"{did_you_mean(str(node.value), known)} Known: {', '.join(known)}."
                )
        used = names_of(leaves, "hyperparameter")
        for name in used:
            if name not in self.hyperparameters:
                raise ProgramError(f"Hyper-parameter `{name}` has no default.")
        kept = {name: float(value) + 0.0 for name, value in self.hyperparameters.items() if name in used}
        for name, value in kept.items():
            if (
                not (name.isidentifier() and name.isascii())
                or keyword.iskeyword(name)
                or name in SPOKEN
                or name in INPUTS[self.family]
            ):
                raise ProgramError(f"A hyper-parameter cannot be called `{name[:40]}`.")
            if not math.isfinite(value):
                raise ProgramError(f"The default of `{name}` must be a finite number, got {value}.")
        object.__setattr__(self, "hyperparameters", MappingProxyType(kept))

    def __reduce__(self):
        return Program, (self.family, self.root, dict(self.hyperparameters))

    def __hash__(self) -> int:
        return hash((self.family, self.root, tuple(self.hyperparameters.items())))

    @cached_property
    def nodes(self) -> list[Node]:
        """Every node once, arguments first."""
        return order(self.root)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names that it reads, in the order of the vocabulary."""
        found = set(names_of(self.nodes, "input"))
        return tuple(name for name in INPUTS[self.family] if name in found)

    @cached_property
    def literal_root(self) -> Node:
        """The expression with every hyper-parameter at its default."""
        if not self.hyperparameters:
            return self.root
        return replace(self.root, {setting(name): const(value) for name, value in self.hyperparameters.items()})

    @cached_property
    def canonical(self) -> Node:
        """The normal form of `literal_root`, see `canonical_form`."""
        from lossmith.discovery.program.canonical import canonical_form

        return canonical_form(self.literal_root)

    @cached_property
    def key(self) -> str:
        """Exact identity, 32 hex digits: equal for programs that are the same by algebra, at their defaults."""
        from lossmith.discovery.program.hashes import exact_hash

        return exact_hash(self.family, self.canonical)

    @cached_property
    def skeleton(self) -> str:
        """Identity but for the values of constants and hyper-parameters."""
        from lossmith.discovery.program.hashes import skeleton_hash

        return skeleton_hash(self.family, self.canonical)

    @property
    def batch_coupled(self) -> bool:
        """Whether an item's loss may depend on other items."""
        reductions = ("mean_batch", "var_batch", "std_batch")
        return self.family == "metric" or any(
            node.op in reductions or (node.op == "mean_masked" and node.type == "scalar") for node in order(self.root)
        )

    def to_json(self) -> str:
        """One line of JSON; `from_json` gives the same program, hash for hash."""
        from lossmith.discovery.program.render import to_json

        return to_json(self)

    @staticmethod
    def from_json(text: str) -> "Program":
        """The program that `to_json` wrote.

        Raises:
            ProgramError: For anything that is no such program.
        """
        from lossmith.discovery.program.render import from_json

        return from_json(text)


def inputs_of(family: str) -> dict[str, Node]:
    """The input nodes of a family's programs by name.

    Raises:
        ProgramError: For a family that discovery does not serve.
    """
    if family not in INPUTS:
        raise ProgramError(f"`family` must be one of {', '.join(INPUTS)}, got '{family}'.")
    return dict(_inputs_of(family))


@cache
def _inputs_of(family: str) -> dict[str, Node]:
    return {name: read(name, type) for name, type in INPUTS[family].items() if name not in KEPT}
