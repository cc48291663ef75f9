"""The named tasks. A new one is its file, one entry here, and where its licence allows it its data folder."""

from collections.abc import Callable

from lossmith.tasks import (
    banking77,
    commonsenseqa,
    cr,
    dpo_mix,
    gsm8k,
    hellaswag,
    imdb_preference,
    mathqa,
    mpqa,
    mr,
    mrpc,
    openbookqa,
    pandalm,
    persona_pairs,
    polite_pairs,
    qasc,
    sst2,
    subj,
    svamp,
    tldr,
    trec,
    ultrafeedback,
)
from lossmith.tasks._fields import Fields
from lossmith.tasks._shipped import ClassificationRecord, CompletionRecord, PreferenceRecord
from lossmith.tasks.completion import Problem

TASKS: tuple[ClassificationRecord, ...] = (
    mr.MR,
    subj.SUBJ,
    cr.CR,
    banking77.BANKING77,
    sst2.SST2,
    mrpc.MRPC,
    trec.TREC,
    trec.TREC50,
    mpqa.MPQA,
)
"""Record of each named classification task."""

COMPLETION_LOADERS: dict[CompletionRecord, Callable[[Fields], Problem | None]] = {
    gsm8k.GSM8K: gsm8k.read_row,
    svamp.SVAMP: svamp.read_row,
    mathqa.MATHQA: mathqa.read_row,
    qasc.QASC: qasc.read_row,
    openbookqa.OPENBOOKQA: openbookqa.read_row,
    commonsenseqa.COMMONSENSEQA: commonsenseqa.read_row,
    hellaswag.HELLASWAG: hellaswag.read_row,
}
"""Record of each task for causal language models -> the function that makes a row of its data a problem."""

PREFERENCE_TASKS: tuple[PreferenceRecord, ...] = (
    polite_pairs.POLITE_PAIRS,
    pandalm.PANDALM,
    persona_pairs.PERSONA_PAIRS,
    ultrafeedback.ULTRAFEEDBACK,
    dpo_mix.DPO_MIX,
    tldr.TLDR,
    imdb_preference.IMDB_PREFERENCE,
)
"""Record of each named set of preferences."""


def list_tasks(*, shipped_only: bool = True) -> tuple[ClassificationRecord, ...]:
    """Records of the classification tasks; `str(record)` is the name that `load_task` takes. Reads no data.

    Args:
        shipped_only: False adds those whose rows are not in the package and need `data=`.

    Example:
        >>> [str(task) for task in list_tasks()]
        ['mr', 'subj', 'cr', 'banking77']
        >>> [str(task) for task in list_tasks(shipped_only=False) if task.split_sizes is None]
        ['sst2', 'mrpc', 'trec', 'trec50', 'mpqa']
    """
    return tuple(record for record in TASKS if record.split_sizes is not None or not shipped_only)


def list_completion_tasks() -> tuple[CompletionRecord, ...]:
    """Records of the tasks for causal language models; `str(record)` is the name that `load_completion_task` takes.

    Example:
        >>> [str(task) for task in list_completion_tasks() if task.split_sizes]
        ['gsm8k', 'svamp', 'mathqa', 'qasc', 'commonsenseqa', 'hellaswag']
    """
    return tuple(COMPLETION_LOADERS)


def list_preference_tasks() -> tuple[PreferenceRecord, ...]:
    """Records of the sets of preferences; `str(record)` is the name that `load_preference_task` takes.

    Example:
        >>> [str(task) for task in list_preference_tasks() if task.split_sizes]
        ['polite_pairs', 'pandalm', 'persona_pairs']
    """
    return PREFERENCE_TASKS
