"""The token rows of a study, from the cache of pre-tokenised parquet files or made and kept there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lossmith.errors import ConfigurationError
from lossmith.evidence import check_writable
from lossmith.integrations.causal_lm.encoding import EncodedSet, PromptFormat, cut_sentence, encode, encode_released
from lossmith.integrations.causal_lm.loading import load_causal_lm
from lossmith.integrations.causal_lm.token_cache import cached, fingerprint_tokens, write_parquet
from lossmith.integrations.models import resolve_model
from lossmith.studies.completion_config import CompletionConfig
from lossmith.studies.config import SharedConfig
from lossmith.tasks import Problem, load_completion_task
from lossmith.tasks.completion import pairs


def prompt_format(config: CompletionConfig, tokenizer: Any, instruction: str) -> PromptFormat:
    """How the prompts and answers of a study become tokens."""
    joint = config.encoding == "released"
    return PromptFormat(tokenizer, chat=config.prompts == "chat", instruction=instruction, joint=joint)


def encode_study(
    config: CompletionConfig, form: PromptFormat, model_fingerprint: str, problems: Sequence[Problem]
) -> EncodedSet:
    """Prompts with their right answers as token rows.

    Args:
        config: Says how long rows may be and how they are encoded.
        form: How prompts and answers become tokens.
        model_fingerprint: Of the model whose tokenizer it is.
        problems: In the order of the rows.
    """
    rows = pairs(problems)
    settings = {
        "model": model_fingerprint,
        "encoding": config.encoding,
        "prompts": config.prompts,
        "instruction": form.instruction,
        "max_length": config.max_length,
        # A template may print the day.
        "probe": form.prompt_ids("probe", "probe"),
    }

    def build() -> EncodedSet:
        if config.encoding == "released":
            return encode_released(form.tokenizer, rows, config.max_length)
        return encode(form, rows, config.max_length, [problem.id for problem in problems])

    if not problems:
        return EncodedSet(rows=(), cut_rows=0, cut_tokens=0, max_length=config.max_length)
    mark = fingerprint_tokens(form.tokenizer, rows, settings)
    return cached(mark, build, max_length=config.max_length, pad_token_id=form.tokenizer.pad_token_id)


def write_tokens(config: SharedConfig, folder: Path) -> dict[str, str]:
    """Write `train.parquet`, `validation.parquet` and `test.parquet` of token rows, all rows of each split.

    Columns: `input_ids`, `attention_mask` (left-padded to `max_length`) and `labels_position_id` (one number: where
    the answer begins), as the released code of the segmentation-loss paper reads them.

    Returns:
        Name of each file -> what was written, in words.

    Raises:
        LossmithError: If the task, the model's tokenizer or the folder cannot be used.
    """
    if not isinstance(config, CompletionConfig):
        raise ConfigurationError(f"'{config.task}' has classes and no written answers: give a task such as gsm8k.")
    task = load_completion_task(config.task, data=config.data)
    model = resolve_model(config.model)
    _, tokenizer = load_causal_lm(model)
    form = prompt_format(config, tokenizer, task.instruction)
    check_writable(folder)
    written = {}
    for split in ("train", "validation", "test"):
        problems = getattr(task, split)
        if not problems:
            continue
        encoded = encode_study(config, form, model.fingerprint, problems)
        write_parquet(folder / f"{split}.parquet", encoded, pad_token_id=tokenizer.pad_token_id)
        cut = cut_sentence(encoded, split)
        written[f"{split}.parquet"] = f"{len(encoded.rows):,} rows of at most {config.max_length} tokens" + (
            f"; {cut}" if cut else ""
        )
    return written
