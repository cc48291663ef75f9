"""Judges: grades and win rates from a language model at any OpenAI-compatible endpoint, or offline."""

from lossmith.evaluation.judging.addresses import KEY_VARIABLES
from lossmith.evaluation.judging.answer_files import AnswerRow, AnswerSet, read_answers
from lossmith.evaluation.judging.answering import AnswerSettings, Asked, Written, write_answers
from lossmith.evaluation.judging.asking import Backoff, ask
from lossmith.evaluation.judging.budget import Budget
from lossmith.evaluation.judging.cache import CallCache
from lossmith.evaluation.judging.calls import JudgeCall, Outcome, Reply, Sampling
from lossmith.evaluation.judging.endpoint import Endpoint
from lossmith.evaluation.judging.intervals import Level, level
from lossmith.evaluation.judging.judge import Judge, Judgement, NoVerdictError
from lossmith.evaluation.judging.length_control import GamedRows, LengthControlled, length_controlled
from lossmith.evaluation.judging.mt_bench import (
    MtBenchComparison,
    MtBenchResult,
    check_comparable,
    compare_grades,
    grade,
)
from lossmith.evaluation.judging.offline import (
    classifier_score,
    likelihood_score,
    likelihood_win_rate,
    load_reward,
    reward_win_rate,
)
from lossmith.evaluation.judging.pairs import PairsResult, Preference, judge_pairs
from lossmith.evaluation.judging.verdicts import Verdict, read_choice, read_rating

__all__ = [
    "KEY_VARIABLES",
    "AnswerRow",
    "AnswerSet",
    "AnswerSettings",
    "Asked",
    "Backoff",
    "Budget",
    "CallCache",
    "Endpoint",
    "GamedRows",
    "Judge",
    "JudgeCall",
    "Judgement",
    "LengthControlled",
    "Level",
    "MtBenchComparison",
    "MtBenchResult",
    "NoVerdictError",
    "Outcome",
    "PairsResult",
    "Preference",
    "Reply",
    "Sampling",
    "Verdict",
    "Written",
    "ask",
    "check_comparable",
    "classifier_score",
    "compare_grades",
    "grade",
    "judge_pairs",
    "length_controlled",
    "level",
    "likelihood_score",
    "likelihood_win_rate",
    "load_reward",
    "read_answers",
    "read_choice",
    "read_rating",
    "reward_win_rate",
    "write_answers",
]
