from collections.abc import Callable

import pytest

from lossmith.evidence import RunRecord


def _run(loss: str = "focal", seed: int = 0, accuracy: float | None = 0.5, **fields) -> RunRecord:
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    defaults = {"loss": loss, "seed": seed, "status": "finished", "config": {}, "metrics": metrics}
    return RunRecord(**(defaults | fields))


@pytest.fixture
def run() -> Callable[..., RunRecord]:
    """Makes a record: `run(loss, seed, accuracy, **fields)`."""
    return _run
