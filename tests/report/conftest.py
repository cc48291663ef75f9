"""What several tests of pages share."""

import pytest
from discovered_runs import small_run


@pytest.fixture(scope="session")
def discovered(tmp_path_factory):
    """The folder of a small finished run of discovery; tests that write into it take a copy."""
    folder = tmp_path_factory.mktemp("discovered") / "run"
    assert small_run(folder).status == "finished"
    return folder
