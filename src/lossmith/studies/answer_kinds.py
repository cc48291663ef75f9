"""What tells studies of pairs from studies of rated answers: how rows are loaded, encoded, scored and measured."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lossmith.errors import DataError
from lossmith.evaluation.preferences import PairLogps, preference_metrics, score_pairs, stored_scores
from lossmith.evaluation.rated import RatedLogps, rated_metrics, score_rated, stored_rated
from lossmith.evaluation.rewards import RewardModel
from lossmith.integrations.preference_rows import EncodedPairs, PairRow, pairs_sentence
from lossmith.integrations.rated_rows import EncodedRated, RatedRow, rated_sentence
from lossmith.studies.preference_config import RatedConfig
from lossmith.studies.preference_training import encode_study_pairs, encode_study_rated
from lossmith.tasks import PreferenceTask, UnpairedTask, load_preference_task, load_unpaired_task
from lossmith.tasks.preference import Pair
from lossmith.tasks.preference_facts import pair_lengths
from lossmith.tasks.unpaired import Rated

AnyTask = PreferenceTask | UnpairedTask
AnyItem = Pair | Rated
AnyRow = PairRow | RatedRow
AnyEncoded = EncodedPairs | EncodedRated
AnyLogps = PairLogps | RatedLogps

SWAPPED_SHARE, SWAPPED_ROWS = 0.8, 10
"""The columns look swapped where the rejected answer is preferred in this share of at least so many pairs."""


@dataclass(frozen=True, kw_only=True)
class AnswerKind:
    """One kind of given answers."""

    name: str
    """What records call such a study."""
    rows: str
    """What a row is called, in the plural."""
    trained: tuple[str, ...]
    """What losses may compare, see `trained_by`."""
    load: Callable[..., Any]
    """The task: name or path, and settings of the loader."""
    encode: Callable[..., Any]
    """Token rows: settings, tokenizer, items and the name of the split."""
    sentence: Callable[[Any, str], str | None]
    """What an encoding cost."""
    score: Callable[..., Any]
    """Log-probabilities under a model."""
    stored: Callable[..., Any]
    """The same, kept on disk."""
    metrics: Callable[[Any, Any], tuple[dict[str, float], dict[str, list[float]]]]
    """What a policy's log-probabilities say beside the reference's."""
    curves: tuple[str, ...]
    """Metrics that are followed on the validation rows."""
    noticed: Callable[[Any], tuple[str, ...]]
    """What the reference's log-probabilities of the test say of the data."""
    measured: Callable[[Any], tuple[dict[str, Any], ...]]
    """Lengths and repeats of a task's rows, by split, for a report."""
    sides: Callable[[Any], dict[str, str]]
    """Texts of a row that a report shows beside what a model writes, by their names."""


def swapped(reference: PairLogps) -> tuple[str, ...]:
    """A sentence where the reference finds what the data call worse likelier, per token, in most pairs."""
    prefers = reference.rejected / reference.rejected_lengths > reference.chosen / reference.chosen_lengths
    return _look_swapped(prefers.tolist(), "The reference finds the rejected answer likelier, per token,")


def swapped_by_reward(reward: RewardModel, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """A sentence where a reward model scores what the data call worse higher in most pairs."""
    chosen, rejected = (
        reward.score_answers([(reward.answer_text(pair.prompt, answer), answer) for pair, answer in side]).values
        for side in ([(pair, pair.chosen) for pair in pairs], [(pair, pair.rejected) for pair in pairs])
    )
    prefers = [worse > better for better, worse in zip(chosen, rejected, strict=True)]
    return _look_swapped(prefers, f"The reward `{reward.name}` is higher for the rejected answer")


def _look_swapped(prefers_rejected: Sequence[bool], said: str) -> tuple[str, ...]:
    count, every = sum(prefers_rejected), len(prefers_rejected)
    if every < SWAPPED_ROWS or count < SWAPPED_SHARE * every:
        return ()
    return (
        f"{said} in {count:,} of {every:,} test pairs: look at some of them, the columns `chosen` and `rejected` may "
        f"be swapped.",
    )


def load_rated(name_or_path: str, **settings: Any) -> UnpairedTask:
    """A task of rated answers, with both kinds in the test.

    Raises:
        DataError: If it cannot be had, or the test has answers of one kind only.
    """
    task = load_unpaired_task(name_or_path, **settings)
    check_both_kinds(task.test, "test")
    return task


def check_both_kinds(rows: Sequence[Any], split: str) -> None:
    """See that there are good and bad answers among rated ones.

    Raises:
        DataError: If there are not.
    """
    counts = Counter(row.label for row in rows)
    if len(counts) < 2:
        raise DataError(
            f"There must be good and bad answers among the {split} rows, got {counts[True]} good and {counts[False]} "
            f"bad ones: give more rows, or a folder with train and test."
        )


def kind_of(config: object) -> AnswerKind:
    """The kind of given answers that a study has."""
    return RATED if isinstance(config, RatedConfig) else PAIRS


def label_counts(items: Sequence[Any]) -> Mapping[str, int]:
    """How many rows are good and bad; nothing for pairs."""
    if not items or not hasattr(items[0], "label"):
        return {}
    good = sum(item.label for item in items)
    return {"good": good, "bad": len(items) - good}


PAIRS = AnswerKind(
    name="preferences",
    rows="pairs",
    trained=("pairs", "singles", "answers"),
    load=load_preference_task,
    encode=encode_study_pairs,
    sentence=pairs_sentence,
    score=score_pairs,
    stored=stored_scores,
    metrics=preference_metrics,
    curves=("preference_accuracy", "margin"),
    noticed=swapped,
    measured=lambda task: tuple(asdict(row) for row in pair_lengths(task)),
    sides=lambda pair: {"chosen": pair.chosen, "rejected": pair.rejected},
)
"""Pairs of a better and a worse answer."""

RATED = AnswerKind(
    name="rated",
    rows="rows",
    trained=("singles", "answers"),
    load=load_rated,
    encode=encode_study_rated,
    sentence=rated_sentence,
    score=score_rated,
    stored=stored_rated,
    metrics=rated_metrics,
    curves=("auc",),
    noticed=lambda reference: (),
    measured=lambda task: (),
    sides=lambda row: {"good answer" if row.label else "bad answer": row.completion},
)
"""Answers that are each said to be good or bad."""
