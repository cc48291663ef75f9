"""What is known of the named tasks, and the rows that travel inside the package."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from lossmith.tasks._originals import Original
from lossmith.tasks.classification import ClassificationTask, Example
from lossmith.tasks.completion import Kind


@dataclass(frozen=True, kw_only=True)
class ClassificationRecord:
    """What is known of a classification task before its rows are read; `str()` of it is its name.

    Shipped rows lie in `tasks/data/<name>/{train,validation,test}.jsonl.gz`; the README beside them says what was
    changed.
    """

    name: str
    """The name that `load_task` takes."""
    title: str
    """What the texts and the classes are, in one line."""
    citation: str
    """Whom to cite."""
    licence: str
    """Licence of the data, as its compilers state it."""
    source: str
    """Repository, commit and file that the shipped rows were taken from, or where the data are published."""
    splits: str
    """Where the splits come from."""
    split_sizes: tuple[int, int, int] | None
    """Rows of the shipped train, validation and test files, or None where the data are not shipped."""
    label_names: tuple[str, ...] = ()
    """Name of each class id; empty where the shipped rows say it."""
    class_fields: tuple[str, ...] = ("label_name", "label_text", "label")
    """Fields that may hold the class of a row; the first that a row has counts."""
    numbered: bool = False
    """Whether an integer is a class id: publishers must agree on the numbers."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Other names of classes, each with the one in `label_names`."""
    pairs: bool = False
    """Whether each row has two texts."""
    hub: str
    """Id of the data set on the hub."""
    hub_config: str | None = None
    """Its configuration there, where it has several."""
    hub_revision: str | None = None
    """Its branch there, where it is not the main one."""
    shares_texts_with: tuple[str, ...] = ()
    """Other tasks with the same texts in part: neither trained on together nor counted as two data sets."""
    hidden_test: bool = False
    """Whether test rows are also published without labels: validation then serves as test."""
    originals: tuple[Original, ...] = ()
    """The files that its authors, or SentEval, published."""
    layout: str
    """The fields of a row, as the end of the sentence "each row with ..."."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class CompletionRecord:
    """What is known of a task for causal language models before its rows are read; `str()` of it is its name."""

    name: str
    """The name that `load_completion_task` takes."""
    kind: Kind
    """What an answer is."""
    title: str
    """What is asked and answered, in one line."""
    citation: str
    """Whom to cite."""
    licence: str
    """Licence of the data."""
    source: str
    """Repository, commit and file that the shipped rows were taken from."""
    splits: str
    """Where the shipped splits come from."""
    split_sizes: tuple[int, int, int] | None
    """Rows of the shipped train, validation and test files, or None where the data are not shipped."""
    instruction: str
    """What a chat model is told before its question."""
    hub: str
    """Id of the data set on the hub."""
    hub_config: str | None = None
    """Its configuration there, where it has several."""
    hub_revision: str | None = None
    """Its branch there, where it is not the main one."""
    hidden_test: bool = False
    """Whether the published test rows have no answers: validation then serves as test."""
    layout: str
    """The published fields, as the end of the sentence "each row with ..."."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class PreferenceRecord:
    """What is known of a set of preferences before its rows are read; `str()` of it is its name."""

    name: str
    """The name that `load_preference_task` takes."""
    title: str
    """What is asked, and what makes an answer the better one, in one line."""
    citation: str
    """Whom to cite, and what the licence asks of models that are trained on it."""
    licence: str
    """Licence of the data."""
    source: str
    """Repository, commit and file that the shipped rows were taken from, or where the data are published."""
    splits: str
    """Where the splits come from."""
    split_sizes: tuple[int, int, int] | None
    """Rows of the shipped train, validation and test files, or None where the data are not shipped."""
    hub: str
    """Id of the data set on the hub; empty where it is not there in pairs."""
    hub_config: str | None = None
    """Its configuration there, where it has several."""
    hub_revision: str | None = None
    """Its branch there, where it is not the main one."""
    split_names: tuple[tuple[str, str], ...] = ()
    """(split, what its publishers call it), where the words train, validation and test do not tell."""
    hidden_test: bool = False
    """Whether no test rows are published: validation then serves as test."""
    instead: str = "`data=FOLDER`, a folder"
    """What else can be given where the hub does not have it."""
    layout: str
    """The published fields, as the end of the sentence "each row with ..."."""

    def __str__(self) -> str:
        return self.name


Record = ClassificationRecord | CompletionRecord | PreferenceRecord
"""What is known of a named task of any kind."""


def load_shipped(task: ClassificationRecord) -> ClassificationTask:
    """Read the three splits of a shipped data set, in the order of its files."""
    label_names: dict[int, str] = {}
    splits: dict[str, tuple[Example, ...]] = {}
    for split in ("train", "validation", "test"):
        examples = []
        for row in shipped_rows(task.name, split):
            label_names[row["label"]] = row["label_name"]
            examples.append(Example(row["text"], row["label"]))
        splits[split] = tuple(examples)
    return ClassificationTask(
        name=task.name,
        label_names=tuple(label_names[label] for label in range(len(label_names))),
        source=task.source,
        licence=task.licence,
        attribution=task.citation,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
    )


def shipped_rows(name: str, split: str) -> Iterator[dict[str, Any]]:
    """Rows of one split of a shipped data set, in the order of its file."""
    resource = files("lossmith.tasks") / "data" / name / f"{split}.jsonl.gz"
    with resource.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield json.loads(line)
