"""Carry gates from one family into another: what works on the margin of a pair may work on the log-odds of a token.

Every family has a number per item that is higher where the model does better: beta * rho of a pair, the log-odds of a
label, near minus far of an anchor. In it p is sigmoid(x), 1 - p sigmoid(-x), log p logsigmoid(x), so -logsigmoid(x) is
DPO in one family and cross-entropy in another. A donor is read as an expression in x and written with the host's x.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from lossmith.discovery.costs import ZERO, Cost
from lossmith.discovery.program import Node, Program, ProgramError, canonical_form, const, make, names_of, order
from lossmith.discovery.proposers.base import Batch, Context, Event, Proposal
from lossmith.discovery.proposers.enumeration import MARGIN_SCALE
from lossmith.discovery.proposers.programs import Novelty, Sieve, programs_of, proposal, to_program
from lossmith.discovery.proposers.vocabulary import vocabulary
from lossmith.errors import ConfigurationError

Linear = dict[str, float]
"""Input -> coefficient of a sum without a number."""
SCALES = (1.0, 3.0, 0.3)
"""What the host's margin is multiplied by besides: the donor's constants were made for other magnitudes."""


class TransplantProposer:
    """Proposes donors, and gates of donors on what is best here, in the host family's variables.

    Args:
        donors: Programs of other families, such as those of another run (`replay.read_candidates`) or known losses.
        name: Of the arm.
        sieve: Leaves out what the checks would refuse.

    Raises:
        ConfigurationError: If there is no donor.
    """

    def __init__(self, donors: Sequence[Program], *, name: str = "transplant", sieve: Sieve | None = None):
        if not donors:
            raise ConfigurationError("`donors` must hold at least one program of another family.")
        self.name = name
        self._donors, self._sieve = tuple(donors), sieve
        self._tried: set[str] = set()

    def expected_cost(self, n: int) -> Cost:
        """Processor time only."""
        return ZERO

    def propose(self, context: Context, n: int) -> Batch:
        """The next `n` that are new: whole donors first, then their gates on the control and the elites."""
        new = Novelty.of(context, self._sieve)
        new.seen |= self._tried
        control = to_program(context.control, context.family)
        hosts = [*([] if control is None else [control]), *programs_of(context.elites, context.family)]
        found: list[Proposal] = []
        for program, host in self._children(context.family, hosts):
            if len(found) == n:
                break
            if new.admit(program):
                parents = () if host is None else (host,)
                found.append(proposal(self.name, program, parents, note="carried over from another family"))
            self._tried.add(program.key)
        return Batch(proposals=tuple(found))

    def observe(self, events: Sequence[Event]) -> None:
        """Nothing is learnt: the gates of elites to come are new children anyway."""

    def state(self) -> dict[str, Any]:
        """Keys of what was tried."""
        return {"tried": sorted(self._tried)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what was tried."""
        self._tried = set(map(str, state["tried"]))

    def _children(self, family: str, hosts: Sequence[Program]) -> Iterator[tuple[Program, Program | None]]:
        carried = [
            root
            for scale in SCALES
            for donor in self._donors
            if donor.family != family and (root := transplanted(donor, family, scale)) is not None
        ]
        for root in carried:
            yield from ((each, None) for each in _programs(family, root))
        for root in carried:
            for gate in gates(root, vocabulary(family).margin):
                for host in hosts:
                    for factor in (gate, make("detach", gate)):
                        product = make("mul", factor, host.literal_root)
                        yield from ((each, host) for each in _programs(family, product))


def _programs(family: str, root: Node) -> Iterator[Program]:
    try:
        yield Program(family, root)
    except ProgramError:
        return


def transplanted(donor: Program, family: str, scale: float = 1.0) -> Node | None:
    """The donor's expression in another family's variables; None where it reads something that has no counterpart.

    Args:
        donor: A program of another family.
        family: Of the host.
        scale: Multiplies the host's margin.
    """
    words = vocabulary(family)
    x = _times(scale * MARGIN_SCALE[family], words.margin)
    changes = _counterparts(donor, x)
    root = donor.literal_root
    new: dict[Node, Node] = {}
    try:
        for node in order(root):
            if node in changes:
                new[node] = changes[node]
            else:
                new[node] = make(node.op, *[new[arg] for arg in node.args]) if node.args else node
    except ProgramError:
        return None
    found = new[root]
    left = set(names_of(order(found), "input")) - set(names_of(order(words.margin), "input"))
    return found if found.type == "item" and not left else None


def _counterparts(donor: Program, x: Node) -> dict[Node, Node]:
    """Parts of the donor that are its natural variables -> what they are in terms of the host's x."""
    if donor.family == "token":
        return _of_tokens(donor.literal_root, x)
    if donor.family == "preference":
        return _of_pairs(donor.literal_root, x)
    margin = vocabulary("metric").margin
    found: dict[Node, Node] = {margin: _times(1 / MARGIN_SCALE["metric"], x)}
    half = _times(0.5 / MARGIN_SCALE["metric"], x)
    # Near and far alone are the two sides of the margin.
    return found | {margin.args[0]: half, margin.args[1]: make("neg", half)}


def _of_tokens(root: Node, x: Node) -> dict[Node, Node]:
    down, log_p, log_rest = make("neg", x), make("logsigmoid", x), make("logsigmoid", make("neg", x))
    found: dict[Node, Node] = {}
    for node in order(root):
        form = linear(node)
        if form == {"token_logps": 1.0, "complement_logps": -1.0}:
            found[node] = x
        elif node.op == "input" and node.value in ("token_logps", "complement_logps"):
            found[node] = log_p if node.value == "token_logps" else log_rest
        elif node.op in ("exp", "expm1") and linear(node.args[0]) == {"token_logps": 1.0}:
            # expm1(log p) = p - 1 = -(1 - p).
            found[node] = make("sigmoid", x) if node.op == "exp" else make("neg", make("sigmoid", down))
    return found


def _of_pairs(root: Node, x: Node) -> dict[Node, Node]:
    """Find rho and the two log-ratios; the donor's beta, its first factor before rho, is taken out of what is bare."""
    forms = {node: form for node in order(root) if (form := linear(node)) is not None}
    factors = [factor for form in forms.values() if (factor := _of_rho(form)) is not None]
    betas = [abs(factor) for factor in factors if abs(factor) != 1]
    beta = betas[0] if betas else 1.0
    found: dict[Node, Node] = {}
    for node, form in forms.items():
        factor, side = _of_rho(form), _of_side(form)
        if factor is not None:
            found[node] = _times(factor / beta, x)
        elif side is not None:
            found[node] = _times(side / beta / 2, x)
    return found


def _of_rho(form: Linear) -> float | None:
    """The k of a form k * rho."""
    k = form.get("chosen_logps", 0.0)
    wanted = {"chosen_logps": k, "rejected_logps": -k, "ref_chosen_logps": -k, "ref_rejected_logps": k}
    return k if k and form == wanted else None


def _of_side(form: Linear) -> float | None:
    """The k of k times the chosen log-ratio, -k for the rejected one: half of what moves the margin."""
    for side, sign in (("chosen", 1.0), ("rejected", -1.0)):
        k = form.get(f"{side}_logps", 0.0)
        if k and form == {f"{side}_logps": k, f"ref_{side}_logps": -k}:
            return sign * k
    return None


def linear(node: Node) -> Linear | None:
    """A node as a sum of inputs with coefficients; None where it is something else."""
    forms: dict[Node, Linear | None] = {}
    for part in order(node):
        forms[part] = _linear(part, [forms[arg] for arg in part.args])
    return forms[node]


def _linear(node: Node, given: Sequence[Linear | None]) -> Linear | None:
    if node.op == "input" and node.type == "item":
        return {str(node.value): 1.0}
    if node.op in ("add", "sub") and given[0] is not None and given[1] is not None:
        sign = 1.0 if node.op == "add" else -1.0
        names = dict.fromkeys([*given[0], *given[1]])
        total = {name: given[0].get(name, 0.0) + sign * given[1].get(name, 0.0) for name in names}
        return {name: value for name, value in total.items() if value != 0}
    if node.op == "neg" and given[0] is not None:
        return {name: -value for name, value in given[0].items()}
    if node.op in ("mul", "div"):
        for place in (0, 1) if node.op == "mul" else (0,):
            form, other = given[place], _number(node.args[1 - place])
            if form is not None and other:
                factor = other if node.op == "mul" else 1 / other
                return {name: value * factor for name, value in form.items()}
    return None


def _number(node: Node) -> float | None:
    """The value of an expression of numbers alone, such as `-beta`."""
    form = canonical_form(node) if node.type == "scalar" else node
    return float(form.value or 0.0) if form.op == "const" else None


def gates(root: Node, margin: Node) -> list[Node]:
    """Factors of products that depend on the item: what makes a loss care about some items more than about others."""
    found: dict[Node, None] = {}
    for node in order(root):
        if node.op == "mul":
            found |= {arg: None for arg in node.args if arg.type == "item" and not _is_affine(arg, margin)}
        elif node.op == "where" and node.args[0].type == "mask":
            found[make("cast", node.args[0])] = None
    return list(found)


def _is_affine(node: Node, margin: Node) -> bool:
    """Whether a node is a number times the margin plus a number: no gate."""
    if node is margin or node.op == "const":
        return True
    mixes = node.op in ("neg", "add", "sub") or (node.op == "mul" and any(arg.op == "const" for arg in node.args))
    return mixes and all(_is_affine(arg, margin) for arg in node.args)


def _times(factor: float, node: Node) -> Node:
    return node if factor == 1 else make("mul", const(factor), node)
