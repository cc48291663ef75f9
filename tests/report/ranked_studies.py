"""Made-up rankings: the size that the few-shot study has, small ones, and one where every text is hostile."""

import numpy as np
from report_studies import HOSTILE

from lossmith.evidence import RunRecord, rank_losses, summarize

JOINT = ("supcon", "soft_triple", "proxy_anchor", "proxy_nca", "triplet_margin", "multi_similarity")
LOSSES = ["cross_entropy", "focal", *(f"0.4*cross_entropy + 0.6*{name}" for name in JOINT)]
TASKS = [
    f"{task} ({rows} rows)" for task in ("mr", "subj", "cr", "trec", "sst2", "mrpc", "banking77") for rows in (20, 100)
]


def fake_ranking(losses=LOSSES, datasets=TASKS, *, seeds=5, metric="accuracy", step=0.012):
    """Every further loss is better by `step`, with luck of the data set and of the block."""
    draw = np.random.default_rng(7)
    sign = -1 if metric.endswith("nll") else 1
    summaries = {}
    for name in datasets:
        level = draw.uniform(0.5, 0.7)
        records = [
            RunRecord(
                loss=loss,
                seed=seed,
                status="finished",
                config={},
                metrics={metric: level + sign * (step * place + luck) + 0.02 * np.sin(seed) + draw.normal(0, 0.01)},
            )
            for place, loss in enumerate(losses)
            for luck in [draw.normal(0, 0.02)]
            for seed in range(seeds)
        ]
        summaries[name] = summarize(records, losses=losses, baseline=losses[0], metric=metric, seeds=range(seeds))
    return rank_losses(summaries)


def hostile_ranking():
    """Hostile text wherever text comes from outside."""
    return fake_ranking([HOSTILE, f"=cmd|{HOSTILE}", f"_{HOSTILE}"], [f"=d {HOSTILE}", f"_e {HOSTILE}", HOSTILE])
