"""Made-up studies of language models that write their answers: sums, choices, and one where every text is hostile."""

import math

import numpy as np
from report_studies import HOSTILE, Study

from lossmith.evidence.records import RunRecord
from lossmith.evidence.summary import summarize

MATH_MEANS = {
    "cross_entropy": 0.30,
    "0.6*cross_entropy + 0.4*focal(gamma=2.0)": 0.31,
    "0.6*cross_entropy + 0.4*generalized_dice": 0.29,
    "0.6*cross_entropy + 0.4*self_adjusting_dice(alpha=1.0)": 0.22,
    "0.6*cross_entropy + 0.4*lovasz_softmax": 0.42,
}
ERRORS = ("unparsed", "wrong_result", "wrong_operators", "inverted_operands", "wrong_operands", "missing_steps",
          "extra_steps", "wrong_final_answer")  # fmt: skip
ERROR_SHARES = (0.1, 0.2, 0.15, 0.05, 0.25, 0.12, 0.08, 0.05)
BROKEN = "</pre></dd></details><script>alert(3)</script>\r\n\x1b[31m\u202egnp.exe\u202c\x00 {{ 7*7 }} " + "Z\u0301" * 40


def sample(index):
    return {
        "index": index,
        "prompt": f"Question: Ann has {index + 2} bags of 24 nuts and eats 7. How many are left?\nAnswer: ",
        "target": f"<<{index + 2}*24={(index + 2) * 24}>> <<{(index + 2) * 24}-7={(index + 2) * 24 - 7}>> "
        f"#### {(index + 2) * 24 - 7}",
    }


def outcomes_of(loss, seed, mean, problems):
    """Right where the problem's difficulty, shared by all, and the run's own luck allow it."""
    difficulty = np.random.default_rng(7).random(problems)
    draw = np.random.default_rng([seed, *loss.encode()])
    right = difficulty + draw.normal(0, 0.12, problems) < mean + np.random.default_rng(seed).normal(0, 0.015)
    wrong = draw.choice(ERRORS, problems, p=ERROR_SHARES)
    other = draw.random(problems) < 0.12
    answers = np.where(right, np.where(other, "correct_other_steps", "correct"), wrong)
    return answers.tolist()


def scores_of(outcomes):
    right = [float(outcome.startswith("correct")) for outcome in outcomes]
    iou = [1.0 if outcome == "correct" else 0.5 if outcome.startswith("correct") else 0.25 for outcome in outcomes]
    return {
        "exact_match": right,
        "released_exact_match": [value * (place % 9 > 0) for place, value in enumerate(right)],
        "answered": [float(outcome != "unparsed") for outcome in outcomes],
        "iou": iou,
        "released_iou": [value * 0.9 for value in iou],
        "missing_steps": [float(outcome == "missing_steps") for outcome in outcomes],
        "released_missing_steps": [0.6 * float(outcome == "missing_steps") for outcome in outcomes],
        "wrong_results": [float(outcome == "wrong_result") for outcome in outcomes],
    }


def fake_completion(loss, seed, mean, *, problems=200, failed=False, samples=(0, 3, 11), **changes):
    outcomes = [] if failed else outcomes_of(loss, seed, mean, problems)
    scores = {} if failed else scores_of(outcomes)
    steps = range(20, 220, 20)
    draw = np.random.default_rng([seed, 9, *loss.encode()])
    curves = {
        "train_objective": [[s, math.exp(-s / 90)] for s in steps],
        "train_nll": [[s, 1.4 * math.exp(-s / 120) + 0.3 + draw.normal(0, 0.02)] for s in steps],
        "validation_nll": [[s, 1.3 * math.exp(-s / 150) + 0.5 - 0.3 * mean + draw.normal(0, 0.01)] for s in steps],
        "validation_exact_match": [[s, mean - 0.2 * math.exp(-s / 60) + draw.normal(0, 0.01)] for s in steps],
    }
    values = {
        "loss": loss,
        "seed": seed,
        "status": "failed" if failed else "finished",
        "config": {"loss": loss, "seed": seed, "train_texts": 6725, "samples": [sample(i) for i in samples]},
        "metrics": {name: sum(found) / len(found) for name, found in scores.items()},
        "curves": {name: points[:4] for name, points in curves.items()} if failed else curves,
        "scores": scores,
        "outcomes": outcomes,
        "outputs": [f"<<{i + 2}*24={(i + 2) * 24}>> #### {i * 20}" for i in range(len(outcomes))],
        "versions": {"python": "3.11.7", "torch": "2.13.0", "lossmith": "0.1.0"},
        "commit": "0123456789abcdef",
        "hardware": {"device": "cpu", "cores": 2},
        "error": "The training loss is not finite at step 80." if failed else None,
        "train_seconds": 0.0 if failed else 311.0 + draw.random(),
        "peak_memory_mib": 0.0 if failed else 1812.0 + seed,
    }
    if not failed:
        values["metrics"]["nll"] = 0.9 - mean
    return RunRecord(**values | changes)


def fake_choice(loss, seed, mean, *, problems=200, failed=False, **changes):
    """Letters A to D and answers that are none of them."""
    draw = np.random.default_rng([seed, *loss.encode()])
    labels = np.random.default_rng(3).integers(0, 4, problems)
    predictions = np.where(draw.random(problems) < mean + 0.3, labels, draw.integers(0, 5, problems))
    right = (predictions == labels).astype(float)
    outcomes = np.where(predictions == labels, "correct", np.where(predictions == 4, "unparsed", "wrong")).tolist()
    scores = {"accuracy": right.tolist(), "released_accuracy": (right * 0.0).tolist(),
              "likelihood_accuracy": np.ones(problems).tolist()}  # fmt: skip
    values = {} if failed else {
        "scores": scores,
        "metrics": {name: float(np.mean(found)) for name, found in scores.items()},
        "outcomes": outcomes,
        "outputs": ["ABCD?"[p] for p in predictions],
        "predictions": predictions.tolist(),
        "labels": labels.tolist(),
        "label_names": ["A", "B", "C", "D", "unparsed"],
    }  # fmt: skip
    return fake_completion(loss, seed, mean, problems=problems, failed=failed, **values | changes)


def completion_study(means=None, *, seeds=3, failed=(), metric="exact_match", make=fake_completion, **options):
    """A study of `means` (loss -> share of right answers); `failed` holds pairs of loss and seed."""
    means = MATH_MEANS if means is None else means
    records = [
        make(loss, seed, mean, failed=(loss, seed) in failed, **options)
        for loss, mean in means.items()
        for seed in range(seeds)
    ]
    return Study(
        summary=summarize(records, losses=list(means), baseline=next(iter(means)), metric=metric, seeds=range(seeds)),
        records=records,
        title="Which loss is best for gsm8k?",
        settings={"task": "gsm8k", "model": {"name": "embedded:smollm2-135m"}, "scopes": {"second": "answer"}},
        commands=["lossmith compare recipes/segmentation/gsm8k.yaml --out runs/gsm8k"],
        attribution="GSM8K: Cobbe et al. 2021, MIT.",
    )


def choice_study(**options):
    return completion_study(metric="accuracy", make=fake_choice, **options)


def hostile_completions():
    """Hostile text in what models wrote, in prompts and targets, and in the names of losses and outcomes."""
    loss, other = f"_{HOSTILE}", f"=cmd|{HOSTILE}"
    texts = [BROKEN, HOSTILE, "", "x" * 5000, "\n" * 400 + "y\n" * 400]
    samples = [{"index": i, "prompt": BROKEN + str(i), "target": HOSTILE} for i in range(len(texts))]
    fields = {"problems": len(texts), "outputs": texts, "config": {"samples": samples}}
    study = completion_study({loss: 0.4, other: 0.5}, seeds=2, **fields)
    for record in study.records:
        record.outcomes[0], record.outcomes[1] = HOSTILE, "_hidden"
    study.title = HOSTILE
    return study
