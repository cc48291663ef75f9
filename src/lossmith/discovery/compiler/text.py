"""From text to one function definition, with every limit that holds before and during parsing."""

import ast
import re
import warnings

from lossmith.discovery.compiler.errors import CompileError, forbidden
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
IMPORTS = (
    "import torch",
    "import math",
    "import torch.nn.functional as F",
    "from torch.nn import functional as F",
    "from torch import Tensor",
    "from lossmith.discovery import mean_masked, std_batch, var_batch",
)
"""Import lines that a file needs to be Python; they are dropped, and name what is allowed anyway."""
_IMPORT_NODES = {ast.dump(ast.parse(line).body[0]) for line in IMPORTS}


def parse_function(source: object) -> ast.FunctionDef:
    """The one function of a source; nothing of it is run.

    Raises:
        CompileError: For a source that is no text, too large, not ASCII, no Python or not one function.
    """
    if not isinstance(source, str):
        raise CompileError("syntax", f"A candidate is text, got {type(source).__name__}.")
    _check_text(source)
    try:
        module = _parse(source)
    except SyntaxError as error:
        raise CompileError("syntax", f"This is no Python: {_said(error)}.", error.lineno) from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise CompileError("syntax", f"This is no Python that can be read ({type(error).__name__}).") from None
    return _only_function(module)


def _check_text(source: str) -> None:
    if len(source) > MAX_BYTES:
        raise CompileError("too-large", f"The source has {len(source):,} characters, more than {MAX_BYTES:,}.")
    plain = source.isascii() and source.replace("\n", " ").isprintable()
    strange = None if plain else _STRANGE.search(source)
    if strange:
        line = source.count("\n", 0, strange.start()) + 1
        raise CompileError(
            "non-ascii", f"Only printable ASCII, tabs and line ends are allowed, got {strange[0]!a}.", line
        )
    if len(source) < MAX_TOKENS and source.count("(") + source.count("[") + source.count("{") <= MAX_DEPTH:
        # Too short for more tokens than that; what is nested by signs alone, the compiler counts.
        return
    tokens = [token for token in _TOKENS.findall(source) if token]
    if len(tokens) > MAX_TOKENS:
        raise CompileError("too-large", f"The source has {len(tokens):,} words and signs, more than {MAX_TOKENS:,}.")
    deepest = depth = 0
    for token in tokens:
        if token in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        elif token in _CLOSING:
            depth -= 1
    if deepest > MAX_DEPTH or _UNARY_RUN.search(source):
        raise CompileError("too-large", f"The source is nested more than {MAX_DEPTH} deep.")


def _parse(source: str) -> ast.Module:
    if "\\" not in source and not _NUMBER_AND_LETTER.search(source):
        return ast.parse(source)
    # Odd escapes and `1if` make the parser warn; the candidate's spelling is not the user's business.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _said(error: SyntaxError) -> str:
    # The parser quotes the source here and there; what it says is cut, the source itself never comes along.
    return (error.msg or "invalid syntax").split("\n")[0][:120]


def _only_function(module: ast.Module) -> ast.FunctionDef:
    functions: list[ast.FunctionDef] = []
    for place, statement in enumerate(module.body):
        if isinstance(statement, ast.FunctionDef):
            functions.append(statement)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            if ast.dump(statement) not in _IMPORT_NODES:
                raise forbidden(
                    statement, f"Nothing is imported; `torch`, `F` and `math` are there. Allowed: {', '.join(IMPORTS)}."
                )
        elif not (place == 0 and is_docstring(statement)):
            raise forbidden(statement, "Only one function may stand in the source.")
    if not functions:
        raise CompileError("signature", "The source must define one function, got none.", 1)
    if len(functions) > 1:
        raise forbidden(functions[1], f"The source must define one function, got {len(functions)}.")
    return functions[0]


def is_docstring(statement: ast.stmt) -> bool:
    """Whether a statement is a text alone, which is dropped where docstrings stand."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
