"""Log-probabilities of given answers behind their prompts, computed in batches and kept on disk."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lossmith.integrations.fingerprints import Fingerprint
from lossmith.integrations.lm_head import HeadLoss
from lossmith.integrations.reference import completion_logps
from lossmith.integrations.reference_cache import ReferenceCache
from lossmith.nn import IGNORE_INDEX

OnBatch = Callable[[int, int], None]
"""Called after every batch with the answers that are done and all there are."""


def answer_logps(
    model: Any,
    answers: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_token_id: int,
    batch_size: int,
    on_batch: OnBatch | None = None,
) -> np.ndarray:
    """One forward pass per answer, in batches of answers of similar length; nothing of size tokens x vocabulary.

    Args:
        model: A causal language model, or one with adapters, which are on or off as they are.
        answers: Token ids of prompt and answer, at least one.
        pad_token_id: Token to fill with; it is masked.
        batch_size: Answers per forward pass, >= 1.
        on_batch: Progress.

    Returns:
        Log-probability of each answer, summed over its tokens, in nats.
    """
    order = sorted(range(len(answers)), key=lambda place: -len(answers[place][0]) - len(answers[place][1]))
    head, found = HeadLoss(model), np.zeros(len(answers))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = _batch([answers[place] for place in places], pad_token_id, next(model.parameters()).device)
        found[places] = completion_logps(head, model, batch).double().cpu().numpy()
        if on_batch is not None:
            on_batch(start + len(places), len(order))
    return found


def stored_answer_logps(
    model: Any,
    tokenizer: Any,
    table: Sequence[Mapping[str, Sequence[int]]],
    sides: Mapping[str, str],
    *,
    batch_size: int,
    name: str,
    folder: Any = None,
) -> dict[str, np.ndarray]:
    """As `answer_logps`, kept on disk under the fingerprint of model, tokenizer and rows.

    Args:
        model: A model that is not trained yet, without adapters.
        tokenizer: Its tokenizer.
        table: Rows with `prompt_ids` and a column of token ids for each answer.
        sides: What the log-probabilities of a column are called -> the column.
        batch_size: Answers per forward pass, >= 1.
        name: Of the file, such as "test".
        folder: As for `ReferenceCache`.

    Raises:
        ConfigurationError: If the file cannot be read or written.
        ModelError: If a log-probability is no number.
    """
    if not table:
        return {side: np.zeros(0) for side in sides}
    columns = ["prompt_ids", *sides.values()]
    longest = [len(row["prompt_ids"]) + max(len(row[column]) for column in sides.values()) for row in table]
    order = sorted(range(len(table)), key=lambda place: -longest[place])
    rows = [{column: table[place][column] for column in columns} for place in order]
    settings = {"dtype": str(model.dtype), "device": model.device.type, "scored": "whole"}
    mark = Fingerprint.of(model, tokenizer, rows, columns=columns, settings=settings)

    def compute(places: list[int]) -> Mapping[str, torch.Tensor]:
        answers = [(rows[place]["prompt_ids"], rows[place][column]) for place in places for column in sides.values()]
        found = answer_logps(model, answers, pad_token_id=tokenizer.pad_token_id, batch_size=batch_size)
        return {side: torch.from_numpy(found[start :: len(sides)]) for start, side in enumerate(sides)}

    at_once = max(batch_size // len(sides), 1)
    kept = ReferenceCache(folder).load_or_compute(name, mark, len(rows), compute, rows_per_call=at_once)
    found = {side: np.zeros(len(rows)) for side in sides}
    for side, values in found.items():
        values[order] = kept[side].double().numpy()
    return found


def _batch(
    answers: Sequence[tuple[Sequence[int], Sequence[int]]], pad_token_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    width = max(len(prompt) + len(ids) for prompt, ids in answers)
    inputs = torch.full((len(answers), width), pad_token_id)
    mask = torch.zeros_like(inputs)
    labels = torch.full_like(inputs, IGNORE_INDEX)
    for place, (prompt, ids) in enumerate(answers):
        end = len(prompt) + len(ids)
        inputs[place, :end] = torch.tensor([*prompt, *ids])
        mask[place, :end] = 1
        labels[place, len(prompt) : end] = torch.tensor(ids)
    return {
        "input_ids": inputs.to(device),
        "attention_mask": mask.to(device),
        "labels": labels.to(device),
    }
