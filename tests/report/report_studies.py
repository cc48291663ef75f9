"""A made-up study with the numbers that the demo should find, and one where every text is hostile."""

import math
from dataclasses import dataclass, field

import numpy as np

from lossmith.evidence.records import RunRecord
from lossmith.evidence.summary import StudySummary, summarize

DEMO_MEANS = {
    "cross_entropy": 0.58,
    "focal": 0.574,
    "0.4*cross_entropy + 0.6*soft_triple": 0.614,
    "0.4*cross_entropy + 0.6*supcon": 0.641,
    "0.6*cross_entropy + 0.4*lovasz_softmax": 0.585,
}
HOSTILE = (
    "<script>alert(1)</script></script><img src=x onerror=alert(2)>$x$ | _a_ & % # {b} ~ ^ \\ \"q\" 'q' "
    "\u2028\u2029 😀 [red]"
)


@dataclass
class Study:
    """What `write_report` is given."""

    summary: StudySummary
    records: list[RunRecord]
    title: str = "mr, 20 sentences per class, all-MiniLM-L6-v2"
    settings: dict = field(default_factory=lambda: {"task": "mr", "shots": 20, "model": {"name": "embedded:minilm-l6"}})
    commands: list[str] = field(
        default_factory=lambda: ["make demo", "lossmith compare recipes/demo.yaml --out runs/demo"]
    )
    attribution: str = "Movie reviews: Pang and Lee 2005."


def fake_record(loss, seed, mean, *, classes=2, examples=400, failed=False, noise=None, names=None, **changes):
    draw = np.random.default_rng([seed, *loss.encode()])
    shared = np.random.default_rng(seed).normal(0, 0.03)
    target = float(np.clip(mean + shared + draw.normal(0, 0.008), 0.02, 0.99))
    labels = np.random.default_rng(0).integers(0, classes, examples)
    wrong = (labels + draw.integers(1, max(classes, 2), examples)) % classes
    predictions = np.where(np.random.default_rng([seed, 1]).random(examples) < target, labels, wrong)
    steps = range(5, 55, 5)
    curves = {
        "train_objective": [[s, math.exp(-s / 30) + draw.normal(0, 0.02)] for s in steps],
        "train_nll": [[s, 0.69 * math.exp(-s / 40 * (mean + 0.4)) + abs(draw.normal(0, 0.015))] for s in steps],
        "validation_accuracy": [[s, target - 0.1 * math.exp(-s / 15) + draw.normal(0, 0.008)] for s in steps],
    }
    if failed:
        curves = {name: [*points[:4], [25, math.nan]] for name, points in curves.items()}
    values = {
        "loss": loss,
        "seed": seed,
        "status": "failed" if failed else "finished",
        "config": {"loss": loss, "seed": seed},
        "metrics": {} if failed else {"accuracy": float((predictions == labels).mean()), "nll": 1.2 - target},
        "curves": curves,
        "predictions": [] if failed else predictions.tolist(),
        "labels": [] if failed else labels.tolist(),
        "label_names": names or (["negative", "positive"] if classes == 2 else [f"intent {i}" for i in range(classes)]),
        "versions": {"python": "3.11.7", "torch": "2.13.0", "lossmith": "0.1.0"},
        "commit": "0123456789abcdef",
        "hardware": {"device": "cpu", "cores": 2},
        "error": "The training loss is not finite at step 25; the last losses were [0.61, 3.2, nan]."
        if failed
        else None,
        "train_seconds": 0.0 if failed else 14.2 + draw.random(),
        "peak_memory_mib": 0.0 if failed else 812.0 + seed,
    }
    return RunRecord(**values | changes)


def fake_study(means=None, *, seeds=5, baseline=None, failed=(), metric="accuracy", **options):
    """A study of `means` (loss -> accuracy); `failed` holds pairs of loss and seed."""
    means = DEMO_MEANS if means is None else means
    records = [
        fake_record(loss, seed, mean, failed=(loss, seed) in failed, **options)
        for loss, mean in means.items()
        for seed in range(seeds)
    ]
    baseline = baseline or next(iter(means))
    summary = summarize(records, losses=list(means), baseline=baseline, metric=metric, seeds=range(seeds))
    return Study(summary=summary, records=records)


def hostile_study():
    """Hostile text wherever text comes from outside."""
    means = {HOSTILE: 0.58, f"=cmd|{HOSTILE}": 0.62, f"_{HOSTILE}": 0.6}
    study = fake_study(
        means,
        seeds=3,
        failed={(f"_{HOSTILE}", 2)},
        names=[HOSTILE, f"_{HOSTILE}"],
        versions={HOSTILE: HOSTILE},
        hardware={HOSTILE: {HOSTILE: [HOSTILE]}},
        commit=HOSTILE,
        config={HOSTILE: HOSTILE},
    )
    study.records[-1] = fake_record(f"_{HOSTILE}", 2, 0.6, failed=True, error=HOSTILE, commit="other+dirty")
    study.summary = summarize(study.records, losses=list(means), baseline=HOSTILE, seeds=range(3))
    study.title = study.attribution = HOSTILE
    study.settings = {HOSTILE: {"nested": [HOSTILE, math.nan]}}
    study.commands = [HOSTILE]
    return study
