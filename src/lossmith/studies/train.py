"""One model: train a single (task, model, loss, seed) and keep what transformers loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lossmith.errors import EvidenceError, ModelError
from lossmith.evidence import RunRecord, check_writable
from lossmith.studies.comparison import open_setting
from lossmith.studies.config import SharedConfig
from lossmith.studies.run import Setting, train_and_test


def train(config: SharedConfig, folder: Path, *, progress: Callable[[float], None] | None = None) -> RunRecord:
    """Train the one loss on the one seed of `config`, test it, and save model, tokenizer, loss and record.

    transformers' auto class for the task loads the result (`AutoModelForSequenceClassification`,
    `AutoModelForCausalLM`); `loss.safetensors` holds proxies where there are any, `result.json` the record;
    `config.json` comes last, so that a folder is a whole model or none.

    Raises:
        EvidenceError: If `folder` is there and not empty, or cannot be written; before training.
        ModelError: If the training loss or the test logits stop being finite.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EvidenceError(f"`{folder}` is there already: choose another --out, or remove it.")
    setting = open_setting(config)
    weights = sum(file.stat().st_size for file in Path(setting.model.location).glob("*.safetensors"))
    check_writable(folder, needed_mib=50 + 2 * weights // 2**20)
    # Made inside the folder, which is known to be writable, so that nothing can fail after the training.
    scratch = folder / ".unfinished"
    try:
        record, trainer = train_and_test(
            setting, config.losses[0], config.blocks[0], scratch / "trainer", progress=progress
        )
        if record.status == "failed":
            raise ModelError(str(record.error))
        scratch.mkdir(exist_ok=True)
        write_model(setting, trainer, record, scratch)
        # The configuration last: without it no folder counts as a model.
        for file in sorted(scratch.iterdir(), key=lambda path: path.name == "config.json"):
            file.rename(folder / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return record


def write_model(setting: Setting, trainer: Any, record: RunRecord, folder: Path) -> None:
    """Write what a run leaves into a folder that is there: model, tokenizer, loss, and `result.json`, the record."""
    setting.save(trainer, folder)
    (folder / "result.json").write_text(json.dumps(record.to_dict(), indent=2) + "\n", encoding="utf-8")
