"""Property tests draw the same examples on every run, and files that mostly wait come first."""

import hypothesis
import pytest

hypothesis.settings.register_profile("lossmith", deadline=None, derandomize=True, max_examples=60, database=None)
# A red build must be red on the next machine too.
hypothesis.settings.load_profile("lossmith")

WAITING = ("test_wheel.py", "test_trainer_over_ranks.py", "test_kill.py", "test_triton.py", "test_trl_ranks.py")
"""Files of few tests that take a minute of other processes: at the end one of them would keep one core alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in WAITING)
