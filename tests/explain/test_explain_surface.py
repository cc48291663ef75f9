"""`lossmith.explain` names everything and loads nothing heavy until it is asked for."""

import subprocess
import sys

import pytest

import lossmith.explain


def test_importing_it_loads_no_optional_package():
    # Blocked, so that an import of one of them fails instead of being there by chance.
    code = (
        "import sys\n"
        "for name in ('numpy', 'scipy', 'pandas', 'sklearn', 'matplotlib', 'captum', 'transformers'): "
        "sys.modules[name] = None\n"
        "import lossmith.explain\n"
        "print(lossmith.explain.loss_curve('focal', points=3).x)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(0.25")


def test_every_public_name_is_there_and_is_no_module():
    for name in lossmith.explain.__all__:
        value = getattr(lossmith.explain, name)
        assert callable(value), name
        assert value.__doc__, name
    homes = {name for names in lossmith.explain._HOMES.values() for name in names}
    assert homes < set(lossmith.explain.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        lossmith.explain.nothing  # noqa: B018
