"""Which rows a rung may see: search and confirmation share no prompt and no text, and a block draws its own of them.

A row's half is decided by its prompt (a classification's by its text), never by its place: pairs of one prompt often
lie side by side, and a search that trains on a prompt has seen half of every test pair of it.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

from lossmith.discovery.rungs.base import Block, Split
from lossmith.discovery.rungs.training import generator_of
from lossmith.errors import ConfigurationError, DataError

MOST_OF_A_POOL = 2 / 3
"""Share of its half's test rows that a block has at most, so that blocks differ in them."""
FEW_SHARED = 0.1
"""Share of a block's test rows that another block may have too before that is said."""
SPLITS: tuple[Split, Split] = ("search", "confirmation")
"""By the number of their half."""


def place_of(split: Split) -> int:
    """The half that a split has: 0 or 1."""
    return SPLITS.index(split)


def same_text(text: str) -> str:
    """A text as it is compared: without its case and without how its words are spaced."""
    return " ".join(text.split()).casefold()


def assign_halves(rows: Iterable[tuple[str, Hashable]]) -> dict[str, int]:
    """Text, as `same_text` has it, -> its half; all rows of a text are in one.

    Texts are gone through in the order of their hashes, so that the order of the rows is nothing; each goes to the half
    that has fewer rows of its kind so far.

    Args:
        rows: Text and kind of each row; what is of one kind, such as the test rows of one label, is halved evenly.

    Example:
        >>> found = assign_halves([("a", "test"), ("A ", "test"), ("b", "test"), ("b", "test")])
        >>> sorted(found), found["a"] != found["b"]
        (['a', 'b'], True)
    """
    kinds: defaultdict[str, Counter[Hashable]] = defaultdict(Counter)
    for text, kind in rows:
        kinds[same_text(text)][kind] += 1
    counts: tuple[Counter[Hashable], Counter[Hashable]] = (Counter(), Counter())
    found: dict[str, int] = {}
    for text in sorted(kinds, key=_digest):
        own = kinds[text]
        ahead = sum(many * (counts[0][kind] - counts[1][kind]) for kind, many in own.items())
        found[text] = int(_digest(text)[-1], 16) % 2 if ahead == 0 else int(ahead > 0)
        counts[found[text]].update(own)
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def halves(config: Any, place: int) -> Path:
    """A folder with one half of each split of a task, written once per content into the user's cache.

    Raises:
        DataError: If the task cannot be read, or has too few different prompts for two halves.
    """
    from filelock import FileLock

    from lossmith.evidence import check_writable, write_atomically
    from lossmith.integrations.models import cache_folder

    task = _load(config)
    key = hashlib.sha256(f"{task.fingerprint}/by-content/{place}".encode()).hexdigest()[:24]
    target = cache_folder() / "halves" / key
    check_writable(target, needed_mib=5)
    with FileLock(str(target) + ".lock"):
        if not (target / "train.jsonl").is_file():
            parts = half_of(task, place)
            # The training rows come last: where they are, the rest is.
            for split in ("test", "validation", "train"):
                if parts[split]:
                    lines = "".join(json.dumps(_row(row, task)) + "\n" for row in parts[split])
                    write_atomically(target / f"{split}.jsonl", lines)
    return target


def half_of(task: Any, place: int) -> dict[str, list[Any]]:
    """Rows of one half, by split.

    Raises:
        DataError: If there are none to train or to test on.
    """
    splits = {split: getattr(task, split, ()) for split in ("train", "validation", "test")}
    told = assign_halves(
        (_decides(row), (split, getattr(row, "label", None))) for split, rows in splits.items() for row in rows
    )
    found = {split: [row for row in rows if told[same_text(_decides(row))] == place] for split, rows in splits.items()}
    for split in ("train", "test"):
        if not found[split]:
            what = "texts" if hasattr(task, "label_names") else "prompts"
            raise DataError(
                f"Search and confirmation share no {what[:-1]}, and the {len(told)} different {what} of '{task.name}' "
                f"leave the {SPLITS[place]} no {split} row: give a task with more {what}."
            )
    return found


def _decides(row: Any) -> str:
    """The text that decides a row's half: a prompt, or the (first) text of a classification."""
    from lossmith.tasks.preference import prompt_text

    return row.text if hasattr(row, "text") else prompt_text(row.prompt)


def _load(config: Any) -> Any:
    from lossmith.studies import PreferenceConfig, StudyConfig
    from lossmith.studies.classification import load_study_task
    from lossmith.tasks.preference_loading import load_preference_task

    if isinstance(config, StudyConfig):
        return load_study_task(config)
    if isinstance(config, PreferenceConfig):
        told = {"data": config.data, "test_fraction": config.test_fraction, "split_seed": config.split_seed}
        return load_preference_task(config.task, **told)
    raise ConfigurationError(
        f"A rung trains on pairs, on sentiment or on classes of texts, and '{config.task}' is none of them."
    )


def _row(row: Any, task: Any) -> dict[str, Any]:
    names = getattr(task, "label_names", None)
    if names is not None:
        pair = {"text_pair": row.pair} if getattr(row, "pair", None) is not None else {}
        return {"text": row.text, **pair, "label": names[row.label]}
    prompt = row.prompt
    if not isinstance(prompt, str):
        prompt = [asdict(each) if is_dataclass(each) and not isinstance(each, type) else each for each in prompt]
        return {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": row.chosen}],
            "rejected": [{"role": "assistant", "content": row.rejected}],
        }
    return {"prompt": prompt, "chosen": row.chosen, "rejected": row.rejected}


def on_folder(config: Any, folder: Path) -> Any:
    """The settings of a study with a folder of `halves` in place of its task.

    What says how the task's own files are read is the folder's own: its columns and splits are always the same.
    """
    fields = type(config).model_fields
    names = ("data", "split_seed", "test_fraction", "text_column", "text_pair_column", "label_column")
    update: dict[str, Any] = {name: fields[name].default for name in names if name in fields}
    with (folder / "train.jsonl").open(encoding="utf-8") as stream:
        first = json.loads(stream.readline())
    if "text_pair" in first:
        update["text_pair_column"] = "text_pair"
    return config.model_copy(update=update | {"task": str(folder)})


def count_rows(folder: Path, split: str) -> int:
    """How many rows of a split a folder of `halves` has."""
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as stream:
        return sum(1 for _ in stream)


def half_of_prompts(prompts: Any, place: int) -> Any:
    """One half of the beginnings of reviews, to train and to test on."""
    told = assign_halves((each.text, part) for part in ("train", "test") for each in getattr(prompts, part))
    own = {
        part: tuple(each for each in getattr(prompts, part) if told[same_text(each.text)] == place)
        for part in ("train", "test")
    }
    return replace(prompts, **own)


def half_of_pairs(task: Any, place: int) -> Any:
    """A preference task with one half of its training pairs."""
    return replace(task, train=tuple(half_of(task, place)["train"]))


def size_of_block(pool: int, wanted: int | None) -> int:
    """Test rows of a block: as many as wanted, and never more than `MOST_OF_A_POOL`.

    Example:
        >>> size_of_block(900, 32), size_of_block(36, 32), size_of_block(1, None)
        (32, 24, 1)
    """
    most = max(1, int(pool * MOST_OF_A_POOL))
    return most if wanted is None else min(wanted, most)


def drawn(block: Block, purpose: str, pool: int, count: int) -> list[int]:
    """Places in a pool that a block draws without replacement, in order; the same for all its programs and the twin."""
    return sorted(int(place) for place in generator_of(block, purpose).choice(pool, size=count, replace=False))


def items_sentence(pool: int, count: int, what: str) -> str:
    """What a block is tested on, and what that does to intervals over blocks.

    Two blocks that draw `count` of `pool` rows have on average the share `count / pool` of them in common.

    Example:
        >>> items_sentence(900, 30, "test prompts")
        '30 of 900 test prompts a block'
        >>> items_sentence(60, 30, "test pairs")
        '30 of 60 test pairs a block; two blocks share 50% of theirs, so intervals over blocks are too narrow'
    """
    said = f"{count} of {pool} {what} a block"
    if count / pool <= FEW_SHARED:
        return said
    return f"{said}; two blocks share {count / pool:.0%} of theirs, so intervals over blocks are too narrow"
