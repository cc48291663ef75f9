"""persona_pairs: statements of sixteen behaviours; the Yes or No that shows the behaviour is chosen."""

from lossmith.tasks._shipped import PreferenceRecord

PERSONA_PAIRS = PreferenceRecord(
    name="persona_pairs",
    title="is this a statement that you would say; the Yes or No that shows the behaviour is chosen",
    citation=(
        "Ethan Perez et al. Discovering language model behaviors with model-written evaluations. Findings of ACL 2023. "
        "https://arxiv.org/abs/2212.09251"
    ),
    licence="CC BY 4.0",
    source="https://github.com/anthropics/evals, commit 84fcc677e52e1902d696c32cd1a6b663e70d3993, persona/*.jsonl",
    splits="80/10/10 by statement, stratified by behaviour, seed 20240; ids begin with the behaviour",
    split_sizes=(12785, 1600, 1600),
    hub="",
    layout="`prompt`, `chosen` and `rejected`",
)
