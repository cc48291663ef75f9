"""Write small files of one's own data, and read the one sentence that a bad one gets."""

import gzip
import json

import pandas as pd
import pytest

from lossmith.errors import DataError
from lossmith.tasks import load_task


def write(folder, name, rows):
    path = folder / name
    frame = pd.DataFrame(rows)
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    elif "json" in name:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
    return path


def write_text(folder, name, text):
    path = folder / name
    path.write_bytes(text.encode())
    return path


def error_of(path, **settings):
    with pytest.raises(DataError) as caught:
        load_task(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), path.name)
