"""The parts of an export that need no run."""

import pytest

from lossmith.discovery.export import objective_name
from lossmith.errors import ConfigurationError


def test_an_objective_is_named_with_or_without_its_ending():
    assert objective_name("mine") == objective_name("mine_loss") == "mine"


@pytest.mark.parametrize("given", ["_loss", "", "2 losses", "if", "if_loss", "m\u00fc_loss"])
def test_what_is_no_name_in_python_is_refused(given):
    with pytest.raises(ConfigurationError, match=f"got '{given}'"):
        objective_name(given)
