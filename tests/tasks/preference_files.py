"""Small files of preferences in each layout, and the one sentence that a bad one gets."""

import json

import pandas as pd
import pytest

from lossmith.errors import DataError
from lossmith.tasks import load_preference_task


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def pair(number, **extra):
    return {"prompt": f"Q{number}?", "chosen": f" good {number}", "rejected": f" bad {number}", **extra}


def comparison(number, *, choice=None, **info):
    found = {
        "id": f"t{number}",
        "subreddit": "pets",
        "title": f"Title {number}",
        "post": f"My cat {number}.\n\nIt sat.",
    }
    return {
        "info": {**found, "site": None, "article": None, **info},
        "summaries": [{"text": f" first {number}", "policy": "a"}, {"text": f" second {number}", "policy": "b"}],
        "choice": number % 2 if choice is None else choice,
        "worker": "w",
        "batch": "batch3",
    }


def responses(number):
    good = number % 2
    texts = ["", ""]
    texts[good], texts[1 - good] = f" fine {number}", f" poor {number}"
    scores = [0.0, 0.0]
    scores[good], scores[1 - good] = 2.5, -1.5
    return {"prompt": f"This film {number}", "responses": texts, "scores": scores, "chosen": good}


def rating(number):
    return {"prompt": f"Q{number // 2}?", "completion": f" answer {number}", "label": number % 2 == 0}


def save(folder, name, rows):
    """Rows as JSON lines, a JSON array, parquet or CSV (lists and objects as JSON in their cells)."""
    path = folder / name
    if name.endswith(".parquet"):
        pd.DataFrame(rows).to_parquet(path)
    elif name.endswith(".csv"):
        cells = [
            {key: json.dumps(cell) if isinstance(cell, list | dict) else cell for key, cell in row.items()}
            for row in rows
        ]
        pd.DataFrame(cells).to_csv(path, index=False)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def everything(task):
    return [*task.train, *task.validation, *task.test]


def complaint(path, load=load_preference_task, **settings):
    """The one sentence, with the folder of the path left out."""
    with pytest.raises(DataError) as caught:
        load(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message.replace(f"{path.parent}/", "")
