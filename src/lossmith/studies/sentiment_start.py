"""Where the policy of a study of sentiment starts: the pretrained model, or the same after a pass over reviews."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from lossmith.errors import LossmithWarning
from lossmith.integrations.causal_lm.collator import CompletionCollator
from lossmith.integrations.causal_lm.loading import load_causal_lm, save_causal_lm
from lossmith.integrations.causal_lm.trainer import CompletionTrainer
from lossmith.integrations.models import ResolvedModel, cache_folder, make_once, resolve_model
from lossmith.studies.run import build_loss, deterministic, seed_everything, trainer_arguments
from lossmith.studies.sentiment_config import SentimentConfig
from lossmith.tasks.sentiment import training_reviews

SETTINGS = ("batch_size", "accumulation", "learning_rate", "weight_decay", "warmup_ratio", "schedule", "max_length")
"""Settings of the study by which the reviews are learnt too."""


def start_of(config: SentimentConfig, model: ResolvedModel, device: torch.device) -> ResolvedModel:
    """The policy before preference training, the same for all blocks.

    With `sft_reviews` all weights of the model are trained for one pass over so many training reviews, with plain
    cross-entropy; the result is kept in the user's cache, by content, and made once even if several processes want it.

    Raises:
        DataError: If there are fewer reviews.
        ModelError: If it cannot be written.
    """
    if not config.sft_reviews:
        return model
    texts = training_reviews(config.reviews, config.data, config.sft_reviews, seed=config.prompt_seed)
    content: dict[str, Any] = {
        "model": model.fingerprint,
        "texts": texts,
        "settings": {name: getattr(config, name) for name in SETTINGS},
        "device": device.type,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    target = cache_folder() / "starts" / key

    def fill(folder: Path) -> None:
        warnings.warn(
            f"Training the policy on {len(texts):,} reviews before anything else, once.", LossmithWarning, stacklevel=2
        )
        _train(config, model, device, texts, folder)

    make_once(target, fill, what="policy trained on reviews")
    return resolve_model(str(target))


def _train(config: SentimentConfig, model: ResolvedModel, device: torch.device, texts: list[str], folder: Path) -> None:
    policy, tokenizer = load_causal_lm(model, device=device)
    ids = tokenizer(texts, truncation=True, max_length=config.max_length - 1, verbose=False)["input_ids"]
    # A review that was cut has no end.
    rows = [row + [tokenizer.eos_token_id] * (len(row) < config.max_length - 1) for row in ids]
    once = config.model_copy(update={"epochs": 1})
    seed = config.prompt_seed
    arguments = trainer_arguments(
        once,
        seed=seed,
        workspace=folder / "trainer",
        on_cpu=device.type == "cpu",
        steps=-(-len(rows) // (config.batch_size * config.accumulation)),
    )
    with deterministic():
        seed_everything(seed)
        trainer = CompletionTrainer(
            model=policy,
            args=arguments,
            train_dataset=[{"input_ids": row, "answer_start": 1} for row in rows],
            data_collator=CompletionCollator(tokenizer.pad_token_id, labels="all"),
            processing_class=tokenizer,
            loss=build_loss("cross_entropy", seed, {}),
        )
        trainer.train()
    save_causal_lm(policy, tokenizer, folder)
