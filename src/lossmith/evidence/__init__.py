"""Records, the SQLite store, intervals, paired tests and the noise floor: what a claim about a loss stands on."""

from lossmith.evidence.bootstrap import BootstrapRange, bootstrap_blocks_and_examples
from lossmith.evidence.claims import RunClaim, RunIsTaken
from lossmith.evidence.folders import check_writable, run_slug, write_atomically
from lossmith.evidence.mcnemar import ExampleComparison, SeedDiscordance, compare_examples, mcnemar
from lossmith.evidence.metrics import (
    CALIBRATION_METRICS,
    CLASSIFICATION_ONLY,
    METHOD_METRICS,
    METHOD_PREFIXES,
    METRICS,
    RELEASED,
    STEP_ERRORS,
    STEP_GAINS,
    MetricStyle,
    format_difference,
    format_interval,
    format_value,
    metric_style,
    split_metric,
)
from lossmith.evidence.ranking import BaselineTests, DatasetRanks, RankedLoss, Ranking, rank_losses
from lossmith.evidence.ranks import (
    BlockInterval,
    FriedmanTest,
    Nemenyi,
    SignedRanks,
    block_interval,
    critical_difference,
    friedman,
    nemenyi,
    signed_rank_test,
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
    "CALIBRATION_METRICS",
    "CLASSIFICATION_ONLY",
    "METHOD_METRICS",
    "METHOD_PREFIXES",
    "METRICS",
    "RELEASED",
    "STEP_ERRORS",
    "STEP_GAINS",
    "VOLATILE_FIELDS",
    "BaselineTests",
    "BlockInterval",
    "BootstrapRange",
    "DatasetRanks",
    "EvidenceStore",
    "ExampleComparison",
    "FriedmanTest",
    "LossSummary",
    "MetricStyle",
    "Nemenyi",
    "NoiseFloor",
    "PairedComparison",
    "RankedLoss",
    "Ranking",
    "RunClaim",
    "RunIsTaken",
    "RunRecord",
    "SeedDiscordance",
    "SignedRanks",
    "Status",
    "StudySummary",
    "Verdict",
    "block_interval",
    "bootstrap_blocks_and_examples",
    "check_writable",
    "compare_examples",
    "critical_difference",
    "format_difference",
    "format_interval",
    "format_value",
    "friedman",
    "holm",
    "mcnemar",
    "metric_style",
    "nemenyi",
    "noise_floor",
    "paired_t",
    "rank_losses",
    "run_slug",
    "sign_flip_test",
    "signed_rank_test",
    "smallest_sign_flip_p",
    "split_metric",
    "summarize",
    "write_atomically",
]
