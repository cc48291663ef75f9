"""A hub that needs no network."""

import pytest


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers and a client that brings what the test put into `splits`."""
    datasets = pytest.importorskip("datasets")
    import huggingface_hub

    state = {"splits": {}, "asked": [], "loaded": [], "configs": ["default"]}

    class Info:
        sha = "0123abc"

    def ask(self, name, revision=None, timeout=None):
        state["asked"].append((name, revision, timeout))
        return Info()

    def load(name, config=None, revision=None):
        state["loaded"].append((name, config, revision))
        if isinstance(state["splits"], Exception):
            raise state["splits"]
        return state["splits"]

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", ask)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: state["configs"])
    return state
