"""One model: train a single (task, model, loss, seed) and keep what transformers loads."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from lossmith.errors import EvidenceError, ModelError
from lossmith.evidence import RunRecord, check_writable
from lossmith.integrations.classification import save_classifier
from lossmith.studies.comparison import open_setting
from lossmith.studies.config import StudyConfig
from lossmith.studies.run import train_and_test


def train(config: StudyConfig, folder: Path, *, progress: Callable[[float], None] | None = None) -> RunRecord:
    """Train the one loss on the one seed of `config`, test it, and save model, tokenizer, loss and record.

    `AutoModelForSequenceClassification.from_pretrained(folder)` loads the result; `loss.safetensors` holds the
    proxies, `result.json` the record. The folder appears whole or not at all.

    Raises:
        EvidenceError: If `folder` is there and not empty, or cannot be written; before training.
        ModelError: If the training loss or the test logits stop being finite.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EvidenceError(f"`{folder}` is there already: choose another --out, or remove it.")
    check_writable(folder)
    setting = open_setting(config)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        record, trainer = train_and_test(
            setting, config.losses[0], config.blocks[0], scratch / "trainer", progress=progress
        )
        if record.status == "failed":
            raise ModelError(str(record.error))
        save_classifier(trainer, scratch)
        (scratch / "result.json").write_text(json.dumps(record.to_dict(), indent=2) + "\n", encoding="utf-8")
        folder.rmdir()
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return record
