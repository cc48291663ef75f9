"""The one representation of a candidate: a typed expression, its normal form, its function and its text."""

from lossmith.discovery.program.canonical import canonical_form
from lossmith.discovery.program.entries import Operator
from lossmith.discovery.program.hashes import exact_hash, skeleton_hash
from lossmith.discovery.program.interpret import as_objective, torch_function
from lossmith.discovery.program.limits import MAX_AST_NODES, MAX_BYTES, MAX_DEPTH, MAX_NODES, check_size
from lossmith.discovery.program.nodes import LEAVES, Node, const, make, names_of, order, read, replace, setting
from lossmith.discovery.program.operators import OPERATORS
from lossmith.discovery.program.program import INPUTS, ITEM, KEPT, Program, inputs_of
from lossmith.discovery.program.render import from_json, one_line, to_json, to_latex, to_python
from lossmith.discovery.program.types import FLOATS, MASKS, WORDS, ProgramError

__all__ = [
    "FLOATS",
    "INPUTS",
    "ITEM",
    "KEPT",
    "LEAVES",
    "MASKS",
    "MAX_AST_NODES",
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_NODES",
    "OPERATORS",
    "WORDS",
    "Node",
    "Operator",
    "Program",
    "ProgramError",
    "as_objective",
    "canonical_form",
    "check_size",
    "const",
    "exact_hash",
    "from_json",
    "inputs_of",
    "make",
    "names_of",
    "one_line",
    "order",
    "read",
    "replace",
    "setting",
    "skeleton_hash",
    "to_json",
    "to_latex",
    "to_python",
    "torch_function",
]
