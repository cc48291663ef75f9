"""Programs as text: Python source, LaTeX, one line, and JSON that gives exactly the same program back."""

import json
from typing import Any

from lossmith.discovery.program.limits import MAX_NODES
from lossmith.discovery.program.nodes import Node, const, make, order, read, setting
from lossmith.discovery.program.operators import OPERATORS
from lossmith.discovery.program.program import INPUTS, Program
from lossmith.discovery.program.types import ProgramError

JSON_VERSION = 1
LATEX_NAMES = {
    "chosen_logps": r"\log \pi(y_c)",
    "rejected_logps": r"\log \pi(y_r)",
    "ref_chosen_logps": r"\log \pi_\mathrm{ref}(y_c)",
    "ref_rejected_logps": r"\log \pi_\mathrm{ref}(y_r)",
    "chosen_lengths": r"|y_c|",
    "rejected_lengths": r"|y_r|",
    "token_logps": r"\log p",
    "complement_logps": r"\log(1 - p)",
    "entropy": "H",
    "log_normalizer": "Z",
    "similarities": "S",
    "distances": "d",
    "same": r"\mathrm{same}",
    "different": r"\mathrm{different}",
    "alpha": r"\alpha",
    "beta": r"\beta",
    "gamma": r"\gamma",
    "tau": r"\tau",
}
_UNARY, _ATOM = 6, 9


def number(value: float) -> str:
    """Shortest text that reads back as the same float."""
    return str(int(value)) + ".0" if value.is_integer() and abs(value) < 1e15 else repr(value)


def to_python(program: Program, name: str = "candidate_loss") -> str:
    """A plain torch function; what is used twice has a name, so its length grows with the DAG.

    It needs `torch`, `torch.nn.functional as F` and, where they occur, `var_batch`, `std_batch` and `mean_masked` of
    `lossmith.discovery`. `compile_source` gives the same expression back.
    """
    texts: dict[Node, tuple[str, int]] = {}
    uses = _uses(program.root)
    lines: list[str] = []
    for node in order(program.root):
        text, level = _python_of(node, texts)
        if node.args and uses.get(node, 0) > 1:
            local = f"v{len(lines) + 1}"
            lines.append(f"    {local} = {text}")
            text, level = local, _ATOM
        texts[node] = text, level
    settings = [f"{key}={number(value)}" for key, value in program.hyperparameters.items()]
    parameters = ", ".join([*program.inputs, *(["*", *settings] if settings else [])])
    return "\n".join([f"def {name}({parameters}):", *lines, f"    return {texts[program.root][0]}", ""])


def one_line(program: Program) -> str:
    """The expression without names for its parts; at most 4,000 nodes by the limit of programs."""
    return _inline(program.root)


def _inline(root: Node) -> str:
    texts: dict[Node, tuple[str, int]] = {}
    for node in order(root):
        texts[node] = _python_of(node, texts)
    return texts[root][0].replace("torch.", "").replace("F.", "")


def _uses(root: Node) -> dict[Node, int]:
    count: dict[Node, int] = {}
    for node in order(root):
        for arg in node.args:
            count[arg] = count.get(arg, 0) + 1
    return count


def _python_of(node: Node, texts: dict[Node, tuple[str, int]]) -> tuple[str, int]:
    if node.op == "const":
        value = float(node.value or 0.0)
        return number(value), _UNARY if value < 0 else _ATOM
    if not node.args:
        return str(node.value), _ATOM
    operator = OPERATORS[node.op]
    if node.op == "clamp":
        return _clamp_text(node, texts), _ATOM
    parts: list[str] = []
    for place, arg in enumerate(node.args):
        text, level = texts[arg]
        parts.append(f"({text})" if level < _needed(operator.level, place, operator.arity) else text)
    return operator.python.format(*parts), operator.level


def _needed(level: int, place: int, arity: int) -> int:
    """How strongly an argument must bind to stand without parentheses; a call takes anything."""
    if level == 9:
        return 0
    if level in (1, 7):
        # Comparisons do not chain, and what `**` raises binds tighter than it.
        return level + 1 if place == 0 or level == 1 else _UNARY
    return level if place == 0 and (arity == 2 or level in (6, 8)) else level + 1


def _clamp_text(node: Node, texts: dict[Node, tuple[str, int]]) -> str:
    value, low, high = node.args
    bounds = [f"min={texts[low][0]}"] if low.value != -float("inf") else []
    bounds += [f"max={texts[high][0]}"] if high.value != float("inf") else []
    return f"torch.clamp({', '.join([texts[value][0], *bounds])})"


def to_latex(program: Program) -> str:
    """The right-hand side of the formula, hyper-parameters as symbols."""
    texts: dict[Node, tuple[str, int]] = {}
    for node in order(program.root):
        texts[node] = _latex_of(node, texts)
    return texts[program.root][0]


def _latex_of(node: Node, texts: dict[Node, tuple[str, int]]) -> tuple[str, int]:
    if node.op == "const":
        value = float(node.value or 0.0)
        return f"{value:.6g}".replace("inf", r"\infty"), _UNARY if value < 0 else _ATOM
    if not node.args:
        name = str(node.value)
        return LATEX_NAMES.get(name, r"\mathrm{" + name.replace("_", r"\_") + "}"), _ATOM
    operator = OPERATORS[node.op]
    parts: list[str] = []
    # Fractions, powers and cases bracket what they hold by themselves.
    brackets = operator.level < 7 and node.op != "div"
    for place, arg in enumerate(node.args):
        text, level = texts[arg]
        needed = _needed(operator.level, place, operator.arity)
        parts.append(rf"\left({text}\right)" if brackets and level < needed else text)
    return operator.latex.format(*parts), _ATOM if node.op == "div" else operator.level


def to_json(program: Program) -> str:
    """One line of JSON; `from_json` gives the same program, hash for hash."""
    places: dict[Node, int] = {}
    rows: list[list[Any]] = []
    for node in order(program.root):
        if node.op == "const":
            row: list[Any] = ["const", float(node.value or 0.0).hex()]
        elif not node.args:
            row = [node.op, node.value]
        else:
            row = [node.op, *(places[arg] for arg in node.args)]
        places[node] = len(rows)
        rows.append(row)
    content = {
        "version": JSON_VERSION,
        "family": program.family,
        "hyperparameters": {name: value.hex() for name, value in program.hyperparameters.items()},
        "nodes": rows,
    }
    return json.dumps(content, separators=(",", ":"))


def from_json(text: str) -> Program:
    """The program that `to_json` wrote; everything is checked, so the text may come from anywhere.

    Raises:
        ProgramError: For anything that is no such program.
    """
    try:
        content = json.loads(text)
        if content["version"] != JSON_VERSION:
            raise ProgramError(f"The program is of version {content['version']!r}, not {JSON_VERSION}.")
        rows, family = content["nodes"], content["family"]
        if not isinstance(rows, list) or not 0 < len(rows) <= MAX_NODES or family not in INPUTS:
            raise ProgramError("The text holds no program.")
        nodes: list[Node] = []
        for row in rows:
            nodes.append(_node_from(row, nodes, family))
        hyperparameters = {name: float.fromhex(value) for name, value in content["hyperparameters"].items()}
        if not all(isinstance(name, str) and name.isidentifier() for name in hyperparameters):
            raise ProgramError("A hyper-parameter has no proper name.")
        return Program(family, nodes[-1], hyperparameters)
    except ProgramError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ProgramError(f"The text holds no program ({type(error).__name__}).") from None


def _node_from(row: Any, nodes: list[Node], family: str) -> Node:
    op, *rest = row
    if op == "const":
        return const(float.fromhex(rest[0]))
    if op == "hyperparameter":
        return setting(str(rest[0]))
    if op == "input":
        return read(rest[0], INPUTS[family][rest[0]])
    if not all(type(place) is int and 0 <= place < len(nodes) for place in rest):
        raise ProgramError(f"An argument of `{op}` is not a node before it.")
    return make(op, *[nodes[place] for place in rest])
