"""Texts as the tokens that a model reads, each with the stretch of text that it stands for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lossmith.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TokenizedText:
    """One text, or a pair, as a model reads it."""

    fields: Mapping[str, tuple[int, ...]]
    """Input of the model by name (`input_ids`, `attention_mask` ...), one entry per token, special ones included."""
    content: tuple[int, ...]
    """Places of the tokens that are part of the text."""
    pieces: tuple[str, ...]
    """What each content token stands for, the blanks before it included; joined they are the text as far as read."""
    segments: tuple[int, ...]
    """Whether each content token is part of the first text (0) or of the second of a pair (1)."""

    def __len__(self) -> int:
        return len(self.fields["input_ids"])


def tokenize_texts(
    tokenizer: Any, texts: Sequence[str], *, pairs: Sequence[str] | None = None, max_length: int = 128
) -> list[TokenizedText]:
    """Tokens of each text, cut as for training, with what they stand for.

    Args:
        tokenizer: transformers' tokenizer of the model.
        texts: The texts.
        pairs: Second texts, where there are pairs.
        max_length: Tokens per text, special ones included.

    Raises:
        DataError: If there is no text, or `pairs` has another length.
    """
    if not texts:
        raise DataError("`texts` must hold at least one text, got none.")
    if pairs is not None and len(pairs) != len(texts):
        raise DataError(f"`pairs` must have one text per text, {len(texts)}, got {len(pairs)}.")
    given = [list(texts), *([list(pairs)] if pairs is not None else [])]
    fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(
        *given, truncation=True, max_length=max_length, return_special_tokens_mask=True, return_offsets_mapping=fast
    )
    names = [name for name in encoded if name not in ("special_tokens_mask", "offset_mapping")]
    found = []
    for row in range(len(texts)):
        content = tuple(place for place, special in enumerate(encoded["special_tokens_mask"][row]) if not special)
        segments, pieces = _pieces(tokenizer, encoded, row, content, [part[row] for part in given], fast)
        fields = {name: tuple(encoded[name][row]) for name in names}
        found.append(TokenizedText(fields=fields, content=content, pieces=pieces, segments=segments))
    return found


def _pieces(
    tokenizer: Any, encoded: Any, row: int, content: Sequence[int], texts: Sequence[str], fast: bool
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    if not fast:
        tokens = tokenizer.convert_ids_to_tokens([encoded["input_ids"][row][place] for place in content])
        return (0,) * len(content), tuple(tokens)
    segments = tuple(int(encoded.sequence_ids(row)[place] or 0) for place in content)
    pieces, read = [], [0] * len(texts)
    for place, segment in zip(content, segments, strict=True):
        # A character of several bytes can be several tokens: the first of them shows it.
        end = max(read[segment], encoded["offset_mapping"][row][place][1])
        pieces.append(texts[segment][read[segment] : end])
        read[segment] = end
    return segments, tuple(pieces)
