"""The token rows of a study, from the cache of pre-tokenised parquet files or made and kept there."""

from collections.abc import Sequence

from lossmith.integrations.causal_lm.encoding import EncodedSet, PromptFormat, encode, encode_released
from lossmith.integrations.causal_lm.token_cache import cached, fingerprint_tokens
from lossmith.studies.completion_config import CompletionConfig
from lossmith.tasks import Problem
from lossmith.tasks.completion import pairs


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
    }

    def build() -> EncodedSet:
        if config.encoding == "released":
            return encode_released(form.tokenizer, rows, config.max_length)
        return encode(form, rows, config.max_length, [problem.id for problem in problems])

    if not problems:
        return EncodedSet(rows=(), cut_rows=0, cut_tokens=0, max_length=config.max_length)
    mark = fingerprint_tokens(form.tokenizer, rows, settings)
    return cached(mark, build, max_length=config.max_length, pad_token_id=form.tokenizer.pad_token_id)
