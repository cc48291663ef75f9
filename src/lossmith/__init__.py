"""lossmith: the place to go when the loss is the question.

Importing it loads torch and nothing heavier.
"""

from typing import Any

from lossmith._debug import debug
from lossmith._version import __version__
from lossmith.engines import LinearLogits, set_chunk_budget
from lossmith.errors import LossmithError, ObjectiveInputError
from lossmith.nn import loss
from lossmith.objectives import list_losses, objective


def __getattr__(name: str) -> Any:
    # These are imported when they are first asked for; they stand above this module's imports.
    if name in ("testing", "discovery"):
        import importlib

        return importlib.import_module(f"lossmith.{name}")
    raise AttributeError(f"module 'lossmith' has no attribute '{name}'")


__all__ = [
    "LinearLogits",
    "LossmithError",
    "ObjectiveInputError",
    "__version__",
    "debug",
    "list_losses",
    "loss",
    "objective",
    "set_chunk_budget",
]
