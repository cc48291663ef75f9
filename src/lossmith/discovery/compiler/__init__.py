"""The compiler: a small subset of Python to programs. Text is parsed and never run."""

from lossmith.discovery.compiler.compile import SIGNATURES, Compiled, compile_candidate, compile_source
from lossmith.discovery.compiler.errors import CATEGORIES, CompileError

__all__ = ["CATEGORIES", "SIGNATURES", "CompileError", "Compiled", "compile_candidate", "compile_source"]
