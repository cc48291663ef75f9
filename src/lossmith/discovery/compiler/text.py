"""From text to one function definition, with every limit that holds before and during parsing."""

import ast
import copy
import re
import warnings
from dataclasses import dataclass
from itertools import islice

from lossmith.discovery.compiler.errors import CompileError, forbidden, line_at
from lossmith.discovery.compiler.imports import check_import
from lossmith.discovery.program.limits import MAX_AST_NODES, MAX_BYTES, MAX_DEPTH

MAX_TOKENS = 4 * MAX_AST_NODES
"""Words and signs outside strings and comments: it bounds the recursion of Python's parser, whatever the nesting."""
_TOKENS = re.compile(
    r'"""(?:\\.|[^\\])*?"""' + r"|'''(?:\\.|[^\\])*?'''"
    r'|"(?:\\.|[^"\\\n])*"' + r"|'(?:\\.|[^'\\\n])*'"
    r"|#[^\n]*|[ \t\r\n]+|(\w+|[^\w\s])",
    re.DOTALL,
)
_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")
_STRANGE = re.compile(r"[^\t\n\r\x20-\x7e]")
# A letter right behind a number; what follows a letter (log1p) is part of a name.
_NUMBER_AND_LETTER = re.compile(r"[0-9](?<![A-Za-z].)\.?[A-Za-z]")
_UNARY_RUN = re.compile(rf"(?:(?:[-+~]|\bnot\b|\blambda\b[^:\n]*:|\bawait\b|\*\*)\s*){{{MAX_DEPTH},}}")
_FENCE = "```"
_UPWARDS = ast.dump(
    ast.parse(
        "def _up(values):\n    return values if values.dtype in (torch.float32, torch.float64) else values.float()"
    )
)
"""The helper of an exported file without its docstring."""


@dataclass(frozen=True)
class Source:
    """What a source holds once all that is dropped is dropped."""

    function: ast.FunctionDef
    upwards: bool
    """Whether the helper `_up` of an exported file stands in it."""
    objectives: frozenset[str]
    """How it may write the decorator of an objective."""


def parse_source(source: object) -> Source:
    """The one function of a source; nothing of it is run.

    Raises:
        CompileError: For a source that is no text, too large, not ASCII, no Python or not one function.
    """
    if not issubclass(type(source), str):
        raise CompileError("syntax", f"A candidate is text, got {type(source).__name__}.")
    # A subclass may answer anything when it is asked; its text is what it is.
    text = str.__str__(source)  # type: ignore[arg-type]
    if len(text) <= MAX_BYTES:
        text = _without_fence(text)
    _check_text(text)
    try:
        module = _parse(text)
    except SyntaxError as error:
        raise CompileError("syntax", f"This is no Python: {_said(error, text)}.", error.lineno or 1) from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise CompileError("syntax", f"This is no Python that can be read ({type(error).__name__}).", 1) from None
    return _only_function(module)


def _without_fence(text: str) -> str:
    """The code in the one fence that is around all of it, each line at its place."""
    inside = text.strip()
    if not inside.startswith(_FENCE):
        return text
    opening, _, code = inside.partition("\n")
    code, _, closing = code.rpartition("\n")
    if closing.strip() != _FENCE or opening.removeprefix(_FENCE).strip().lower() not in ("", "py", "python", "python3"):
        return text
    return "\n" * line_at(text, text.index(_FENCE)) + code


def _check_text(source: str) -> None:
    if len(source) > MAX_BYTES:
        raise CompileError(
            "too-large",
            f"The source has {len(source):,} characters, more than {MAX_BYTES:,}.",
            line_at(source, MAX_BYTES),
        )
    plain = source.isascii() and source.replace("\n", " ").isprintable()
    strange = None if plain else _STRANGE.search(source)
    if strange:
        raise CompileError(
            "non-ascii",
            f"Only printable ASCII, tabs and line ends are allowed, got {strange[0]!a}.",
            line_at(source, strange.start()),
        )
    if len(source) < MAX_TOKENS and source.count("(") + source.count("[") + source.count("{") <= MAX_DEPTH:
        # Too short for more tokens than that; what is nested by signs alone, the compiler counts.
        return
    tokens = [token for token in _TOKENS.findall(source) if token]
    if len(tokens) > MAX_TOKENS:
        raise CompileError(
            "too-large",
            f"The source has {len(tokens):,} words and signs, more than {MAX_TOKENS:,}.",
            _line_of_token(source, MAX_TOKENS),
        )
    depth = 0
    for place, token in enumerate(tokens):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth > MAX_DEPTH:
            raise _nested(_line_of_token(source, place))
    run = _UNARY_RUN.search(source)
    if run:
        raise _nested(line_at(source, run.start()))


def _nested(line: int) -> CompileError:
    return CompileError("too-large", f"The source is nested more than {MAX_DEPTH} deep.", line)


def _line_of_token(source: str, place: int) -> int:
    """Where a word or sign stands; matches are made one by one, since thousands of them kept wake the collector."""
    found = (match for match in _TOKENS.finditer(source) if match[1])
    return line_at(source, next(islice(found, place, None)).start())


def _parse(source: str) -> ast.Module:
    if "\\" not in source and not _NUMBER_AND_LETTER.search(source):
        return ast.parse(source)
    # Odd escapes and `1if` make the parser warn; the candidate's spelling is not the user's business.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _said(error: SyntaxError, source: str) -> str:
    if _FENCE in source:
        return "it holds a fence of three backticks; give the code inside it alone"
    # The parser quotes the source here and there; what it says is cut, the source itself never comes along.
    said = (error.msg or "invalid syntax").split("\n")[0]
    if "integer string conversion" in said:
        return "a whole number has too many digits"
    return said if len(said) <= 120 else said[:120].rpartition(" ")[0] + " ..."


def _only_function(module: ast.Module) -> Source:
    functions: list[ast.FunctionDef] = []
    upwards = False
    objectives: set[str] = set()
    for place, statement in enumerate(module.body):
        if isinstance(statement, ast.FunctionDef):
            if _is_upwards(statement):
                upwards = True
            else:
                functions.append(statement)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            objectives |= check_import(statement, module.body[:place])
        elif not (place == 0 and is_docstring(statement)):
            raise forbidden(statement, _alone(statement))
    if not functions:
        raise CompileError("signature", "The source must define one function, got none.", 1)
    if len(functions) > 1:
        raise forbidden(functions[1], f"The source must define one function, got {len(functions)}.")
    return Source(functions[0], upwards, frozenset(objectives))


def _is_upwards(function: ast.FunctionDef) -> bool:
    """Whether a function is the helper that exported files have; two of the same are one."""
    if function.name != "_up" or len(function.body) > 2:
        return False
    plain = copy.copy(function)
    plain.body = function.body[1:] if is_docstring(function.body[0]) else function.body
    try:
        return ast.dump(ast.Module([plain], [])) == _UPWARDS
    except RecursionError:
        return False


def _alone(statement: ast.stmt) -> str:
    said = "Only one function may stand in the source"
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return f"{said}: put the assignment into the function, or its name after `*` as a hyper-parameter."
    if isinstance(statement, ast.AsyncFunctionDef):
        return f"{said}, without `async`."
    return f"{said}."


def is_docstring(statement: ast.stmt) -> bool:
    """Whether a statement is a text alone, which is dropped where docstrings stand."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
