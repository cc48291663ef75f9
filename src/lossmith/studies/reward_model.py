"""The reward that is used where none is named: a classifier of film-review sentences, trained here and kept."""

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmith.errors import LossmithWarning, ModelError
from lossmith.integrations.models import cache_folder, make_once, resolve_model
from lossmith.studies.classification import load_study_task, open_classification
from lossmith.studies.config import StudyConfig
from lossmith.studies.run import train_and_test
from lossmith.studies.train import write_model

TRAINED = "trained"
"""The name of this reward."""
REWARD_SETTINGS: dict[str, Any] = {
    "task": "mr",
    "model": "embedded:minilm-l6",
    "losses": ["cross_entropy"],
    "baseline": "cross_entropy",
    "seeds": [0],
    "head": "pooled",
    "shots_total": 2000,
    "epochs": 1,
    "batch_size": 32,
    "learning_rate": 1e-4,
    "max_length": 64,
    "curve_examples": 0,
    "calibration_examples": 0,
    "device": "cpu",
}
"""How it is trained; any change of these makes another one."""


@dataclass(frozen=True, kw_only=True)
class TrainedReward:
    """A reward that was trained here."""

    folder: Path
    """Where the classifier is, in safetensors; `open_reward` loads it."""
    test_accuracy: float
    """On the test set of its task, in [0, 1]."""
    test_examples: int
    """How many sentences that is."""

    @property
    def sentence(self) -> str:
        """What a report must say of it."""
        return (
            f"The reward is a classifier that lossmith trained on '{REWARD_SETTINGS['task']}' "
            f"({REWARD_SETTINGS['model']}, cross_entropy); it is right on {100 * self.test_accuracy:.1f}% of "
            f"{self.test_examples:,} test sentences, and so is what it rewards."
        )


def trained_reward(
    *, settings: dict[str, Any] | None = None, say: Callable[[str], None] = lambda _: None
) -> TrainedReward:
    """The default reward, trained the first time that it is wanted and then loaded from the user's cache.

    Its folder is named by what it was made from: settings, rows and pretrained weights by content. It appears whole or
    not at all, once even if two processes want it.

    Args:
        settings: In the place of some of `REWARD_SETTINGS`.
        say: Is told before a training that takes a while.

    Raises:
        LossmithError: If it cannot be trained or written.
    """
    config = StudyConfig(**(REWARD_SETTINGS | (settings or {})))
    content = {"task": load_study_task(config).fingerprint, "model": resolve_model(config.model).fingerprint}
    made_from = json.dumps({"settings": config.settings(), **content}, sort_keys=True)
    target = cache_folder() / "rewards" / hashlib.sha256(made_from.encode()).hexdigest()[:32]

    def fill(folder: Path) -> None:
        say("Training the reward, a classifier of film-review sentences: a minute or two, once.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LossmithWarning)
            setting = open_classification(config)
            record, trainer = train_and_test(setting, config.losses[0], config.blocks[0], folder / "trainer")
            if record.status == "failed":
                raise ModelError(f"The reward cannot be trained: {record.error}")
            write_model(setting, trainer, record, folder)

    make_once(target, fill, what="trained reward")
    return _read(target)


def _read(folder: Path) -> TrainedReward:
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        accuracy, count = float(result["metrics"]["accuracy"]), len(result["labels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"`{folder}` holds no trained reward ({type(error).__name__}): remove it.") from error
    return TrainedReward(folder=folder, test_accuracy=accuracy, test_examples=count)
