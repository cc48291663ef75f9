"""Optional parts: import them late, and say in one sentence which extra brings them."""

import importlib
from types import ModuleType

from lossmith.errors import MissingExtraError


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra installs it and what it is for.

    Args:
        module: Dotted module name.
        extra: The extra of lossmith that installs it, such as `train`.
        purpose: What needs it, as the end of the sentence "... is needed to ...".

    Raises:
        MissingExtraError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        package = module.split(".")[0]
        raise MissingExtraError(
            f"`{package}` is needed to {purpose} and is not installed: pip install 'lossmith[{extra}]'."
        ) from error
