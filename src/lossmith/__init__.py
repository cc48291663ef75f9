"""lossmith: the place to go when the loss is the question.

Importing it loads torch and nothing heavier.
"""

from lossmith._debug import debug
from lossmith._version import __version__
from lossmith.errors import LossmithError, ObjectiveInputError
from lossmith.nn import loss
from lossmith.objectives import list_losses, objective

__all__ = ["LossmithError", "ObjectiveInputError", "__version__", "debug", "list_losses", "loss", "objective"]
