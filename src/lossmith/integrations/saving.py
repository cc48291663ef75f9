"""A loss beside a saved model or in a checkpoint: how it is written, and its proxies, running means and schedule."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch

from lossmith.errors import ConfigurationError
from lossmith.nn import LossModule

LOSS_WEIGHTS = "loss.safetensors"
LOSS_CONFIG = "lossmith.json"


def save_loss(loss: LossModule, folder: Path, **settings: Any) -> None:
    """Write a loss beside a saved model: its composition string and, where it has any, its state.

    Args:
        loss: The loss.
        folder: An existing folder.
        **settings: What else belongs to it, as JSON.
    """
    state = {name: tensor.contiguous().cpu() for name, tensor in loss.state_dict().items()}
    if state:
        safetensors.torch.save_file(state, folder / LOSS_WEIGHTS)
    sizes = {name: list(tensor.shape) for name, tensor in state.items()}
    text = json.dumps({"loss": str(loss), "parameters": sizes, **settings}, indent=2) + "\n"
    (folder / LOSS_CONFIG).write_text(text, encoding="utf-8")


def load_loss(loss: LossModule, folder: Path) -> None:
    """Bring back the state that `save_loss` wrote.

    Args:
        loss: The loss, built as the saved one was.
        folder: Where that was saved.

    Raises:
        ConfigurationError: If the folder holds no loss or another one.
    """
    config = folder / LOSS_CONFIG
    if not config.is_file():
        raise ConfigurationError(f"{folder} holds no {LOSS_CONFIG}: it was not saved with a lossmith loss.")
    saved = json.loads(config.read_text(encoding="utf-8"))["loss"]
    if saved != str(loss):
        raise ConfigurationError(f"{folder} was trained with '{saved}', this trainer has '{loss}': give the same loss.")
    state = loss.state_dict()
    if not state:
        return
    weights = folder / LOSS_WEIGHTS
    if not weights.is_file():
        raise ConfigurationError(f"{folder} lacks {LOSS_WEIGHTS}, the state of '{loss}' ({', '.join(state)}).")
    loss.load_state_dict(safetensors.torch.load_file(weights))
