"""Live progress where there is no terminal: what is done already, and one line per finished run."""

import io

import pytest
from rich.console import Console

from lossmith.evidence import RunRecord
from lossmith.report.live import LiveProgress
from lossmith.report.share import ShareProgress
from lossmith.report.tuning_live import TuningProgress
from lossmith.studies.tuning_search import Trial

RUNS = [
    RunRecord(
        loss="focal(gamma=[1])",
        seed=3,
        status="finished",
        metrics={"accuracy": 0.625},
        config={"tuned": {"trial": trial, "seconds": 12.4}},
        train_seconds=1.6,
    )
    for trial in (0, 2)
]
FAILED = RunRecord(
    loss="dft",
    seed=4,
    status="failed",
    error="[It] diverged.",
    config={"tuned": {"trial": None, "seconds": 7.0}},
    train_seconds=2.0,
)
MAKE = {
    "study": lambda console: LiveProgress(console, "accuracy"),
    "tuning": lambda console: TuningProgress(console, metric="accuracy", objective="nll", trials=5),
}


def lines(kind):
    console = Console(file=io.StringIO(), width=200)
    with MAKE[kind](console) as progress:
        progress.study_began(12, 8)
        for record in (*RUNS, FAILED):
            progress.run_began(record.loss, record.seed)
            if kind == "tuning":
                progress.trial_began(0, 5)
                progress.trial_ended(0, Trial(values={}, state="finished", folds=[0.5]))
            progress.run_moved(0.5)
            progress.run_ended(record)
        progress.waiting("mile", 5)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_a_training_says_how_far_it_is_at_every_tenth(monkeypatch):
    clock = iter(range(10, 100, 10))
    monkeypatch.setattr("lossmith.report.share.time.monotonic", lambda: float(next(clock)))
    console = Console(file=io.StringIO(), width=200)
    with ShareProgress(console, "dpo[x]") as progress:
        for share in (0.0, 0.05, 0.25, 0.29, 0.5, 1.0):
            progress.moved(share)
    assert console.file.getvalue().splitlines() == [
        "dpo[x]: 25% done, about 60 s left",
        "dpo[x]: 50% done, about 40 s left",
        "dpo[x]: 100% done, about 0 s left",
    ]


@pytest.mark.parametrize(
    ("kind", "finished", "failed"),
    [
        ("study", ["62.5  (2 s of training)"] * 2, "  (2 s of training)"),
        ("tuning", ["62.5  (as written, 12 s of search)", "62.5  (trial 3 of 5, 12 s of search)"], ""),
    ],
)
def test_a_line_per_run_in_plain_text(kind, finished, failed):
    first, *runs = lines(kind)[:4]
    assert first == "8 of 12 runs are done already and are not repeated."
    assert runs == [
        f"[ 9/12] seed 3  focal(gamma=[1]): accuracy {finished[0]}",
        f"[10/12] seed 3  focal(gamma=[1]): accuracy {finished[1]}",
        f"[11/12] seed 4  dft: failed: [It] diverged.{failed}",
    ]
