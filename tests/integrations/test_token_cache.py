"""Token rows in parquet: read back as they were, by the released loader too, and never anybody else's."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lossmith.errors import ConfigurationError, DataError, LossmithWarning
from lossmith.integrations.causal_lm import token_cache
from lossmith.integrations.causal_lm.encoding import EncodedRow, EncodedSet
from lossmith.integrations.causal_lm.token_cache import cached, fingerprint_tokens, read_parquet, write_parquet
from reference_inputs import tokenizer as word_tokenizer

PAD = 1
FINGERPRINT = "0123456789abcdef" * 4
ROWS = EncodedRow([11, 12, 13, 14, 2], 3), EncodedRow([15, 16, 2], 1), EncodedRow([17, 18, 19, 20, 21, 22, 2], 5)
ENCODED = EncodedSet(ROWS, cut_rows=2, cut_tokens=31, max_length=7, dropped_rows=4)
TEXTS = [("w3 w4", "w4", "w5"), ("w6", "w6", "w7")]


def written(folder: Path, encoded: EncodedSet = ENCODED) -> Path:
    path = folder / "below" / "rows.parquet"
    write_parquet(path, encoded, pad_token_id=PAD, fingerprint=FINGERPRINT)
    return path


def kept(folder: Path, build: Callable[[], EncodedSet], **settings: Any) -> EncodedSet:
    return cached(FINGERPRINT, build, **{"max_length": 7, "pad_token_id": PAD, "folder": folder, **settings})


def never() -> EncodedSet:
    raise AssertionError("built although there is a file")


# The layout


def test_columns_and_values_are_those_of_the_released_layout(tmp_path: Path) -> None:
    table = pq.read_table(written(tmp_path))
    assert [(field.name, field.type) for field in table.schema] == [
        ("input_ids", pa.list_(pa.int64())),
        ("attention_mask", pa.list_(pa.int8())),
        ("labels_position_id", pa.list_(pa.int64())),
    ]
    assert table.to_pylist()[:2] == [
        {
            "input_ids": [1, 1, 11, 12, 13, 14, 2],
            "attention_mask": [0, 0, 1, 1, 1, 1, 1],
            "labels_position_id": [5],
        },
        {
            "input_ids": [1, 1, 1, 1, 15, 16, 2],
            "attention_mask": [0, 0, 0, 0, 1, 1, 1],
            "labels_position_id": [5],
        },
    ]
    about = json.loads((table.schema.metadata or {})[b"lossmith"])
    assert about["fingerprint"] == FINGERPRINT
    assert (about["cut_rows"], about["cut_tokens"], about["dropped_rows"]) == (2, 31, 4)


def test_rows_come_back_as_they_were_however_they_are_grouped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_parquet(written(tmp_path)) == ENCODED
    monkeypatch.setattr(token_cache, "ROWS_PER_GROUP", 2)
    path = written(tmp_path)
    assert pq.ParquetFile(path).num_row_groups == 2
    assert read_parquet(path) == ENCODED
    nothing = EncodedSet((), 0, 0, 7)
    assert read_parquet(written(tmp_path, nothing)) == nothing


def test_the_released_loader_and_indexing_find_the_answers(tmp_path: Path) -> None:
    from datasets import Sequence, Value, load_dataset
    from transformers import DataCollatorForLanguageModeling

    path = written(tmp_path)
    loaded = load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    bools: Any = Sequence(Value("bool"))
    loaded = loaded.cast_column("attention_mask", bools)
    loaded = loaded.filter(lambda row: row["labels_position_id"] != [0])
    assert len(loaded) == 3
    batch = DataCollatorForLanguageModeling(word_tokenizer(template=None), mlm=False)([loaded[i] for i in range(3)])
    starts = batch["labels_position_id"]
    window = batch["labels"][:, 1:][:, starts.min() - 1 : -1].clone()
    for number, start in enumerate(starts):
        window[number, : start - starts.min()] = -100
    # Everything of an answer but its EOS, aligned with the logits that predict it.
    assert window.tolist() == [[14], [16], [22]]


def test_a_row_beyond_the_maximum_length_is_not_written(tmp_path: Path) -> None:
    too_long = EncodedSet((*ROWS, EncodedRow([5] * 8, 2)), 0, 0, 7)
    with pytest.raises(DataError, match=r"Rows must have at most 7 tokens, got one of 8\."):
        written(tmp_path, too_long)
    assert not list(tmp_path.rglob("*.parquet"))


# Cached


def test_rows_are_built_once(tmp_path: Path) -> None:
    asked = []

    def build() -> EncodedSet:
        asked.append(1)
        return ENCODED

    assert kept(tmp_path, build) == ENCODED
    assert os.listdir(tmp_path) == [f"{FINGERPRINT}.parquet"]
    assert kept(tmp_path, never) == ENCODED
    assert len(asked) == 1


def test_files_are_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path))
    cached(FINGERPRINT, lambda: ENCODED, max_length=7, pad_token_id=PAD)
    assert (tmp_path / "tokens" / f"{FINGERPRINT}.parquet").is_file()


def _cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip_a_token(path: Path) -> None:
    content = bytearray(path.read_bytes())
    # The first data page follows the 4 bytes of the magic and its header.
    content[60] ^= 0xFF
    path.write_bytes(bytes(content))


def _foreign(path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), path)


def _other_layout(path: Path) -> None:
    table = pq.read_table(path)
    about = json.loads((table.schema.metadata or {})[b"lossmith"])
    pq.write_table(table.replace_schema_metadata({"lossmith": json.dumps({**about, "layout": 0})}), path)


def _other_rows(path: Path) -> None:
    write_parquet(path, ENCODED, pad_token_id=PAD, fingerprint="f" * 64)


def _other_padding(path: Path) -> None:
    write_parquet(path, ENCODED, pad_token_id=0, fingerprint=FINGERPRINT)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_cut_in_half, "must be a parquet file of token rows, got one that cannot be read. It is made again."),
        (_empty, "must be a parquet file of token rows, got one that cannot be read. It is made again."),
        (_flip_a_token, "must be a parquet file of token rows, got one that cannot be read. It is made again."),
        (_foreign, "holds no token rows of this version of lossmith. It is made again."),
        (_other_layout, "holds no token rows of this version of lossmith. It is made again."),
        (_other_rows, f"has fingerprint '{'f' * 64}', expected '{FINGERPRINT}'. It is made again."),
        (_other_padding, "has pad_token_id 0, expected 1. It is made again."),
    ],
)
def test_a_damaged_or_foreign_file_is_made_again(tmp_path: Path, damage: Callable[[Path], None], sentence: str) -> None:
    kept(tmp_path, lambda: ENCODED)
    path = tmp_path / f"{FINGERPRINT}.parquet"
    damage(path)
    with pytest.warns(LossmithWarning) as found:
        assert kept(tmp_path, lambda: ENCODED) == ENCODED
    assert str(found[0].message) == f"`{path}` {sentence}"
    assert kept(tmp_path, never) == ENCODED


def test_a_flipped_bit_never_gives_other_rows(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    columns = pq.ParquetFile(path).metadata.row_group(0)
    refused = 0
    for number in range(columns.num_columns):
        column = columns.column(number)
        first = column.dictionary_page_offset or column.data_page_offset
        for place in range(first, first + column.total_compressed_size):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            try:
                assert read_parquet(path) == ENCODED
            except DataError:
                refused += 1
    assert refused > 100


def test_nothing_is_kept_where_building_or_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="built although"):
        kept(tmp_path, never)
    monkeypatch.setattr(token_cache.os, "replace", _no_room)
    with pytest.raises(ConfigurationError, match=r"cannot be saved in .* \(No space left on device\): set LOSSMITH_C"):
        kept(tmp_path, lambda: ENCODED)
    assert os.listdir(tmp_path) == []


def _no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_fingerprint_is_no_path_and_lengths_agree(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"`fingerprint` must be 8 to 64 digits in hex, got '\.\./0123456789'"):
        cached("../0123456789", never, max_length=7, pad_token_id=PAD, folder=tmp_path)
    with pytest.raises(ConfigurationError, match="`build` must give rows of `max_length=9`, got 7"):
        kept(tmp_path, lambda: ENCODED, max_length=9)


def test_who_is_slower_keeps_a_whole_file_too(tmp_path: Path) -> None:
    halfway = []

    def slow() -> EncodedSet:
        # Another process finds no file either, and is done first.
        assert kept(tmp_path, lambda: ENCODED) == ENCODED
        halfway.extend(os.listdir(tmp_path))
        return ENCODED

    assert kept(tmp_path, slow) == ENCODED
    assert halfway == os.listdir(tmp_path) == [f"{FINGERPRINT}.parquet"]
    assert kept(tmp_path, never) == ENCODED


# Fingerprints


def test_a_fingerprint_changes_with_all_that_rows_depend_on() -> None:
    settings = {"max_length": 128, "chat": False}
    base = fingerprint_tokens(word_tokenizer(), TEXTS, settings)
    assert base == fingerprint_tokens(word_tokenizer(), [*TEXTS], dict(reversed(settings.items())))
    others = [
        fingerprint_tokens(word_tokenizer(words=60), TEXTS, settings),
        fingerprint_tokens(word_tokenizer(eos_token="w9"), TEXTS, settings),
        fingerprint_tokens(word_tokenizer(template="{{ messages[0] }}"), TEXTS, settings),
        fingerprint_tokens(word_tokenizer(), TEXTS[::-1], settings),
        fingerprint_tokens(word_tokenizer(), TEXTS[:1], settings),
        fingerprint_tokens(word_tokenizer(), [("w3", "w4 w4", "w5"), TEXTS[1]], settings),
        fingerprint_tokens(word_tokenizer(), TEXTS, {**settings, "max_length": 129}),
        fingerprint_tokens(word_tokenizer(), TEXTS, {**settings, "instruction": "Add."}),
    ]
    assert len({base, *others}) == 9
    assert len(base) == 64


def test_the_layout_is_part_of_a_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint_tokens(word_tokenizer(), TEXTS, {})
    monkeypatch.setattr(token_cache, "LAYOUT", 2)
    assert fingerprint_tokens(word_tokenizer(), TEXTS, {}) != before
