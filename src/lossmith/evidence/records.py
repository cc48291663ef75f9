"""What one training run leaves behind: the row that every table, figure and verdict is computed from."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from lossmith.errors import EvidenceError

Status = Literal["finished", "failed"]

VOLATILE_FIELDS = ("started_at", "finished_at", "train_seconds", "evaluation_seconds", "peak_memory_mib", "attempts")
"""Fields that differ between two undisturbed repetitions of the same run: times, memory and attempt counts."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished or failed training run: one loss on one block (seed) of one study."""

    loss: str
    """Canonical composition string of the loss."""
    seed: int
    """The block: fixes head, shots, data order and dropout, identically for every loss."""
    status: Status
    """`finished`, or `failed` with `error` (a diverged run is a result, not an absence)."""
    config: dict[str, Any]
    """The resolved settings that made this run."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Test metrics as fractions: `accuracy`, `macro_f1`, `weighted_f1`, and `nll` in nats."""
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    """Name of the curve -> `[step, value]` points: `train_objective`, `train_nll`, `validation_accuracy`, ..."""
    predictions: list[int] = field(default_factory=list)
    """Predicted class of every test example, in test order."""
    labels: list[int] = field(default_factory=list)
    """True class of every test example, in test order."""
    label_names: list[str] = field(default_factory=list)
    """Name of each class id."""
    scores: dict[str, list[float]] = field(default_factory=dict)
    """Metric -> its value on every test example, in test order; 1 and 0 where an answer is right or wrong."""
    outputs: list[str] = field(default_factory=list)
    """What a language model wrote for every test example, in test order."""
    outcomes: list[str] = field(default_factory=list)
    """What became of every test example: `correct`, or the class of its error."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package -> version, with `python`."""
    commit: str | None = None
    """Commit of lossmith's source tree, with `+dirty` where it had changes; None outside a checkout."""
    hardware: dict[str, Any] = field(default_factory=dict)
    """Device, processor, cores, threads, platform."""
    error: str | None = None
    """Why a failed run failed, in one sentence."""
    started_at: str = ""
    """UTC, ISO 8601."""
    finished_at: str = ""
    """UTC, ISO 8601."""
    train_seconds: float = 0.0
    """Wall time of training alone, without validation curves and the final test."""
    evaluation_seconds: float = 0.0
    """Wall time of the final test."""
    peak_memory_mib: float = 0.0
    """Peak device memory during training; on a CPU the peak resident memory of the process."""
    attempts: int = 1
    """How often this run was begun, interrupted attempts included."""

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunRecord":
        """The record that `to_dict` wrote; unknown or missing fields raise `EvidenceError`."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise EvidenceError(f"A run record holds fields that this version does not know: {unknown}.")
        try:
            return cls(**values)
        except TypeError as error:
            raise EvidenceError(f"A run record is incomplete: {error}.") from error
