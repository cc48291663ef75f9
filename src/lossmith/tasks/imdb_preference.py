"""imdb_preference: beginnings of film reviews, each with two samples of GPT-2, one chosen by a sentiment model."""

import reprlib

from lossmith.errors import DataError
from lossmith.tasks._fields import Fields
from lossmith.tasks._scores import read_choice, read_score, two_of
from lossmith.tasks._shipped import PreferenceRecord
from lossmith.tasks.preference import Pair

IMDB_PREFERENCE = PreferenceRecord(
    name="imdb_preference",
    title="beginnings of film reviews; of two samples one is drawn as chosen by how positive a classifier finds them",
    citation=(
        "Zhanhui Zhou et al. Weak-to-strong search: align large language models via searching over small language "
        "models. NeurIPS 2024. https://arxiv.org/abs/2405.19262"
    ),
    licence="not stated by its data card",
    source="https://huggingface.co/datasets/ZHZisZZ/imdb_preference",
    splits="published",
    split_sizes=None,
    hub="ZHZisZZ/imdb_preference",
    layout="`prompt`, `responses` (two), `chosen` (0 or 1) and perhaps `scores` (two)",
)


def read_responses(fields: Fields) -> Pair:
    """A row as published: `chosen` is the index of the better response.

    Raises:
        DataError: If a field is absent or of a wrong type.
    """
    responses = two_of(fields, "responses")
    if not all(isinstance(text, str) for text in responses):
        raise DataError(f"{fields} must have texts in field `responses`, got {reprlib.repr(responses)}.")
    scores = [None, None]
    if fields.has("scores"):
        scores = [read_score(fields, "scores", value) for value in two_of(fields, "scores")]
    choice = read_choice(fields, "chosen")
    return Pair(
        id=fields.id,
        prompt=fields.text("prompt"),
        chosen=responses[choice],
        rejected=responses[1 - choice],
        chosen_score=scores[choice],
        rejected_score=scores[1 - choice],
    )
