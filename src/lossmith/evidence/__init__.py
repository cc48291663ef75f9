"""Records, the SQLite store, intervals, paired tests and the noise floor: what a claim about a loss stands on."""

from lossmith.evidence.bootstrap import BootstrapRange, bootstrap_blocks_and_examples
from lossmith.evidence.claims import RunClaim, RunIsTaken
from lossmith.evidence.folders import check_writable, run_slug, write_atomically
from lossmith.evidence.mcnemar import ExampleComparison, SeedDiscordance, compare_examples, mcnemar
from lossmith.evidence.metrics import (
    METRICS,
    RELEASED,
    STEP_ERRORS,
    STEP_GAINS,
    MetricStyle,
    format_difference,
    format_interval,
    format_value,
    metric_style,
)
from lossmith.evidence.records import VOLATILE_FIELDS, RunRecord, Status
from lossmith.evidence.sentences import Verdict
from lossmith.evidence.statistics import (
    NoiseFloor,
    PairedComparison,
    holm,
    noise_floor,
    paired_t,
    sign_flip_test,
    smallest_sign_flip_p,
)
from lossmith.evidence.store import EvidenceStore
from lossmith.evidence.summary import LossSummary, StudySummary, summarize

__all__ = [
    "METRICS",
    "RELEASED",
    "STEP_ERRORS",
    "STEP_GAINS",
    "VOLATILE_FIELDS",
    "BootstrapRange",
    "EvidenceStore",
    "ExampleComparison",
    "LossSummary",
    "MetricStyle",
    "NoiseFloor",
    "PairedComparison",
    "RunClaim",
    "RunIsTaken",
    "RunRecord",
    "SeedDiscordance",
    "Status",
    "StudySummary",
    "Verdict",
    "bootstrap_blocks_and_examples",
    "check_writable",
    "compare_examples",
    "format_difference",
    "format_interval",
    "format_value",
    "holm",
    "mcnemar",
    "metric_style",
    "noise_floor",
    "paired_t",
    "run_slug",
    "sign_flip_test",
    "smallest_sign_flip_p",
    "summarize",
    "write_atomically",
]
