from pathlib import Path

import pytest

import tiny
from lossmith.studies import StudyConfig, make_config
from lossmith.studies.comparison import open_setting
from lossmith.studies.run import Setting


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_data(tmp_path_factory.mktemp("data") / "films.jsonl")


@pytest.fixture
def settings(tiny_model: Path, tiny_data: Path) -> dict:
    return {
        "task": str(tiny_data),
        "model": str(tiny_model),
        "losses": ["cross_entropy", "0.4*cross_entropy + 0.6*soft_triple(centers_per_class=2)"],
        "seeds": 2,
        "shots": 8,
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "device": "cpu",
    }


@pytest.fixture
def setting_of(settings: dict):
    def make(**changes: object) -> Setting:
        config: StudyConfig = make_config(settings | changes)
        return open_setting(config)

    return make


class Silent:
    """A listener that only remembers."""

    def __init__(self):
        self.began: list[tuple[str, int]] = []
        self.ended: list[tuple[str, int]] = []

    def study_began(self, planned: int, finished: int) -> None:
        self.planned, self.finished = planned, finished

    def run_began(self, loss: str, seed: int) -> None:
        self.began.append((loss, seed))

    def run_moved(self, share: float) -> None:
        assert 0 <= share <= 1

    def run_ended(self, record) -> None:
        self.ended.append((record.loss, record.seed))

    def waiting(self, loss: str, seed: int) -> None:
        raise AssertionError("nobody else runs this study")


@pytest.fixture
def listener() -> Silent:
    return Silent()
