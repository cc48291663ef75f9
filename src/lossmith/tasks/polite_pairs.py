"""polite_pairs: instructions with a polite (chosen) and an impolite (rejected) answer."""

from lossmith.tasks._shipped import PreferenceRecord

POLITE_PAIRS = PreferenceRecord(
    name="polite_pairs",
    title="short instructions; the polite answer is chosen, the impolite one rejected",
    citation=(
        "Sebastian Raschka. Build a Large Language Model (From Scratch). Manning 2024. The answers were written by "
        "Llama 3.1 (Llama 3.1 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved; built with "
        'Llama): distributed models that were trained on them carry "Llama" in their name.'
    ),
    licence="Apache-2.0; answers written by Llama 3.1",
    source=(
        "https://github.com/rasbt/LLMs-from-scratch, commit 28c65cdfbc3338e2e040016eea4b7fdf556e4d57, "
        "ch07/04_preference-tuning-with-dpo/instruction-data-with-preference.json"
    ),
    splits="80/10/10 by prompt, seed 20240 (not those of the book)",
    split_sizes=(876, 109, 109),
    hub="",
    layout="`prompt`, `chosen` and `rejected`",
)
