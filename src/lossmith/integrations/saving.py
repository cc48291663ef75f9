"""A loss beside a saved model or in a checkpoint: how it is written, and its proxies, running means and schedule."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

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
    state = loss.state_dict()
    sizes = {name: list(tensor.shape) for name, tensor in state.items()}
    write_state(folder, state, {"loss": str(loss), "parameters": sizes, **settings})


def load_loss(loss: LossModule, folder: Path) -> None:
    """Bring back the state that `save_loss` wrote.

    Args:
        loss: The loss, built as the saved one was.
        folder: Where that was saved.

    Raises:
        ConfigurationError: If the folder holds no loss, another one, or not its whole state.
    """
    saved = read_config(folder)["loss"]
    if saved != str(loss):
        raise ConfigurationError(f"{folder} was trained with '{saved}', this trainer has '{loss}': give the same loss.")
    loss.load_state_dict(read_state(folder, loss, loss.state_dict()))


def write_state(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write tensors, if there are any, and what they belong to, as JSON."""
    if state:
        tensors = {name: tensor.contiguous().cpu() for name, tensor in state.items()}
        safetensors.torch.save_file(tensors, folder / LOSS_WEIGHTS)
    (folder / LOSS_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote beside the tensors.

    Raises:
        ConfigurationError: If the folder holds no loss.
    """
    config = folder / LOSS_CONFIG
    if not config.is_file():
        raise ConfigurationError(f"{folder} holds no {LOSS_CONFIG}: it was not saved with a lossmith loss.")
    return json.loads(config.read_text(encoding="utf-8"))


def read_state(folder: Path, loss: LossModule, names: Collection[str]) -> dict[str, Tensor]:
    """The tensors that `write_state` wrote, which must be those of `names`.

    Raises:
        ConfigurationError: If some are missing, or there are others.
    """
    if not names:
        return {}
    weights = folder / LOSS_WEIGHTS
    if not weights.is_file():
        raise ConfigurationError(f"{folder} lacks {LOSS_WEIGHTS}, the state of '{loss}' ({', '.join(names)}).")
    state = safetensors.torch.load_file(weights)
    if set(state) != set(names):
        raise ConfigurationError(
            f"{weights} must hold the state of '{loss}', {', '.join(sorted(names))}, got {', '.join(sorted(state))}."
        )
    return state


def give_ordinary_permissions(folder: Path) -> None:
    """Make the files of a folder as readable as any new file; safetensors writes for their owner only."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(0o666 & ~mask)
