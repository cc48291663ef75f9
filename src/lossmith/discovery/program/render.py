"""Programs as text: Python source, LaTeX, one line, and JSON that gives exactly the same program back."""

import json
import re
from dataclasses import dataclass, field, replace
from itertools import count
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
_UNARY, _CALL, _ATOM = 6, 8, 9
# A name may end in the letter F.
_MODULE = re.compile(r"\b(?:torch|F)\.")


def number(value: float) -> str:
    """Shortest text that reads back as the same float."""
    return str(int(value)) + ".0" if value.is_integer() and abs(value) < 1e15 else repr(value)


def to_python(program: Program, name: str = "candidate_loss") -> str:
    """A plain torch function; what is used twice has a name, so its length grows with the DAG.

    It needs `torch`, `torch.nn.functional as F` and, where they occur, `var_batch`, `std_batch`, `mean_masked` and
    `number` of `lossmith.discovery`. `compile_source` gives the same expression back. Numbers per anchor that meet
    tables have an `.unsqueeze(-1)`, as torch wants it.
    """
    uses = _uses(program.root)
    taken = {*program.inputs, *program.hyperparameters}
    lines: list[str] = []
    writer = _Writer(like=next((each for each in program.inputs if each not in ("same", "different")), None))
    for node in order(program.root):
        text = writer.write(node)
        if node.args and uses.get(node, 0) > 1:
            local = next(each for place in count(len(lines) + 1) if (each := f"v{place}") not in taken)
            taken.add(local)
            lines.append(f"    {local} = {text.text}")
            writer.texts[node] = replace(text, text=local, level=_ATOM)
    settings = [f"{key}={number(value)}" for key, value in program.hyperparameters.items()]
    parameters = ", ".join([*program.inputs, *(["*", *settings] if settings else [])])
    return "\n".join([f"def {name}({parameters}):", *lines, f"    return {writer.texts[program.root].text}", ""])


def one_line(program: Program) -> str:
    """The expression without names for its parts; at most 4,000 nodes by the limit of programs.

    For people and for prompts: what is widened to a table, and what is a tensor, is left out.
    """
    return _inline(program.root)


def _inline(root: Node) -> str:
    writer = _Writer(like=None)
    for node in order(root):
        writer.write(node)
    return _MODULE.sub("", writer.texts[root].text)


def _uses(root: Node) -> dict[Node, int]:
    uses: dict[Node, int] = {}
    for node in order(root):
        for arg in node.args:
            uses[arg] = uses.get(arg, 0) + 1
    return uses


@dataclass(frozen=True)
class _Text:
    """The text of a node, how strongly it binds, and whether it is a tensor, as opposed to a plain number."""

    text: str
    level: int
    tensor: bool


@dataclass
class _Writer:
    """Texts of nodes, arguments first.

    With `like`, the name of a tensor, what is written runs: plain numbers become tensors of its kind where torch takes
    tensors alone, and numbers per item grow an axis where they meet a table.
    """

    like: str | None
    texts: dict[Node, _Text] = field(default_factory=dict)

    def write(self, node: Node) -> _Text:
        self.texts[node] = text = self._text(node)
        return text

    def _text(self, node: Node) -> _Text:
        if node.op == "const":
            value = float(node.value or 0.0)
            return _Text(number(value), _UNARY if value < 0 else _ATOM, tensor=False)
        if not node.args:
            return _Text(str(node.value), _ATOM, tensor=node.op == "input")
        operator = OPERATORS[node.op]
        given = self._given(node)
        tensor = any(each.tensor for each in given)
        if node.op == "clamp":
            return _Text(_clamp_text(node, given), _ATOM, tensor)
        parts = [
            f"({each.text})" if each.level < _needed(operator.level, place, operator.arity) else each.text
            for place, each in enumerate(given)
        ]
        return _Text(operator.python.format(*parts), operator.level, tensor)

    def _given(self, node: Node) -> list[_Text]:
        """Texts of the arguments, widened and made tensors where the operator needs it."""
        given = [self.texts[arg] for arg in node.args]
        if self.like is None:
            return given
        if any(arg.type in ("table", "table_mask") for arg in node.args):
            given = [
                replace(each, text=f"{_called_on(each)}.unsqueeze(-1)", level=_CALL)
                if arg.type in ("item", "mask")
                else each
                for arg, each in zip(node.args, given, strict=True)
            ]
        for place in self._tensors_at(node, given):
            if not given[place].tensor:
                given[place] = _Text(f"number({given[place].text}, {self.like})", _ATOM, tensor=True)
        return given

    def _tensors_at(self, node: Node, given: list[_Text]) -> tuple[int, ...]:
        """Places of arguments that must be tensors: torch's functions take them alone, `a / b` must not raise."""
        if node.op in ("min", "max"):
            return (0, 1)
        if node.op == "where":
            return () if given[1].tensor or given[2].tensor else (1,)
        if node.op in ("add", "sub", "mul", "neg"):
            return ()
        return () if any(each.tensor for each in given) else (0,)


def _called_on(text: _Text) -> str:
    return text.text if text.level >= _CALL else f"({text.text})"


def _needed(level: int, place: int, arity: int) -> int:
    """How strongly an argument must bind to stand without parentheses; a call takes anything."""
    if level == 9:
        return 0
    if level in (1, 7):
        # Comparisons do not chain, and what `**` raises binds tighter than it.
        return level + 1 if place == 0 or level == 1 else _UNARY
    return level if place == 0 and (arity == 2 or level in (6, 8)) else level + 1


def _clamp_text(node: Node, given: list[_Text]) -> str:
    _, low, high = node.args
    bounds = [f"min={given[1].text}"] if low.value != -float("inf") else []
    bounds += [f"max={given[2].text}"] if high.value != float("inf") else []
    return f"torch.clamp({', '.join([given[0].text, *bounds])})"


def to_latex(program: Program) -> str:
    """The right-hand side of the formula, hyper-parameters as symbols."""
    texts: dict[Node, tuple[str, int]] = {}
    for node in order(program.root):
        texts[node] = _latex_of(node, texts)
    return texts[program.root][0]


def _latex_of(node: Node, texts: dict[Node, tuple[str, int]]) -> tuple[str, int]:
    if node.op == "const":
        return _latex_number(float(node.value or 0.0))
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
        # Behind an operator a sign would be read as that of a difference.
        signed = text.startswith("-") and (node.op == "neg" or (place > 0 and node.op in ("add", "sub", "mul")))
        parts.append(rf"\left({text}\right)" if brackets and (level < needed or signed) else text)
    if node.op == "mul" and parts[1][0].isdigit():
        return rf"{parts[0]} \cdot {parts[1]}", operator.level
    return operator.latex.format(*parts), _ATOM if node.op == "div" else operator.level


def _latex_number(value: float) -> tuple[str, int]:
    """A number with all its digits, powers of ten as such."""
    if abs(value) == float("inf"):
        return (r"\infty", _ATOM) if value > 0 else (r"-\infty", _UNARY)
    text = number(value).removesuffix(".0")
    if "e" not in text:
        return text, _UNARY if value < 0 else _ATOM
    mantissa, exponent = text.split("e")
    power = f"10^{{{int(exponent)}}}"
    if mantissa in ("1", "-1"):
        return mantissa.removesuffix("1") + power, _UNARY if value < 0 else 7
    return rf"{mantissa} \cdot {power}", 5


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
