"""A preference objective that is in the registry for one test only."""

import pytest

from lossmith.objectives import _registry, objective


@pytest.fixture
def pair_loss():
    @objective(family="preference", item="pair", source="https://example.org")
    def only_here_loss(chosen_logps, rejected_logps, *, beta: float = 0.1):
        return beta * (rejected_logps - chosen_logps)

    yield "only_here"
    del _registry._REGISTRY["only_here"]
