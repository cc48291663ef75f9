"""Every test and doctest runs with jaxtyping and beartype checking each call of the library's own layers.

The hook rewrites modules as they are imported, so it stands at the root: pytest reads this file before it collects
anything, `src` with its doctests included. `tests/test_type_checks.py` proves that it works.
"""

import sys

import jaxtyping

CHECKED_LAYERS = ("lossmith.objectives", "lossmith.engines", "lossmith.nn", "lossmith._reduce", "lossmith._numerics")

assert not any(name.startswith("lossmith") for name in sys.modules), "lossmith was imported before the type checks"
jaxtyping.install_import_hook(CHECKED_LAYERS, "beartype.beartype")
