"""The report of a study of preferences, on made-up records: levels, displacement, pictures, foreign text."""

import csv
import io
import math

import numpy as np
import pytest
from report_page import parse_page
from report_studies import HOSTILE

from lossmith.evidence.records import RunRecord
from lossmith.evidence.summary import summarize
from lossmith.report.preference_figures import by_beta, compared_part, objective_curve, seen_margins
from lossmith.report.preferences import BEFORE, preference_parts
from lossmith.report.write import write_report

LOSSES = ("dpo", "dpo(beta=0.5)", "kto", "cross_entropy")


def record(loss: str, seed: int, *, failed: bool = False, text: str = "polite") -> RunRecord:
    chosen, rejected = (-3.0 - seed, -9.0) if loss == "dpo" else (2.0 + seed, -2.0)
    metrics = {
        "preference_accuracy": 0.7 + 0.01 * seed, "policy_accuracy": 0.6, "nll": 2.0,
        "chosen_shift": chosen, "rejected_shift": rejected, "margin": chosen - rejected,
        "start_preference_accuracy": 0.5, "start_margin": 0.0, "start_nll": 2.5,
    }  # fmt: skip
    edges = np.linspace(-1.0 - seed, 3.0, 9).tolist()
    rho = None if loss == "cross_entropy" else {"edges": edges, "counts": [[1] * 8, [0] * 4 + [2] * 4]}
    shown = [{"prompt": text, "chosen": "yes", "rejected": "no", "answer": f"{text} by {loss}"}]
    config = {"kind": "preferences", "train_texts": 70, "test_texts": 2}
    return RunRecord(
        loss=loss,
        seed=seed,
        status="failed" if failed else "finished",
        error="The loss is not finite." if failed else None,
        config=config if failed else config | {"rho": rho, "shown": shown},
        metrics={} if failed else metrics,
        scores={} if failed else {"preference_accuracy": [1.0, 0.0]},
    )


def written(folder, records, losses=LOSSES):
    summary = summarize(records, losses=losses, baseline="dpo", metric="preference_accuracy", seeds=(0, 1))
    page = write_report(folder, summary=summary, records=records, title="t", settings={}, commands=["c"])
    return summary, parse_page(page.read_text(encoding="utf-8"))


@pytest.fixture
def records():
    return [record(loss, seed) for loss in LOSSES for seed in (0, 1)]


def test_the_page_shows_levels_displacement_pictures_and_answers(tmp_path, records):
    _, page = written(tmp_path, records)
    text = page.text()
    assert "70 training pairs per seed, 2 test pairs" in text
    assert BEFORE in text
    assert "dpo: in 2 of 2 runs the margin grew while the chosen answers became less likely (by 3.50 nats" in text
    assert "kto: in" not in text
    assert "polite by kto" in text
    assert "initial adapters" in text
    assert "The pairs" not in text
    names = {path.name for path in tmp_path.iterdir()}
    assert {"objectives.png", "shifts.png", "beta_sweep.png", "preferences.csv", "preferences.md"} <= names
    assert "confusion.png" not in names
    rows = list(csv.DictReader(io.StringIO((tmp_path / "preferences.csv").read_text(encoding="utf-8"))))
    assert {row["metric"] for row in rows} >= {"margin", "chosen_shift", "preference_accuracy"}
    assert not any(row["metric"].startswith("start_") for row in rows)


def test_the_page_shows_rows_repeats_and_lengths_of_the_data(tmp_path, records):
    row = {"split": "train", "pairs": 1200, "repeated": 7, "chosen_longer": 0.654, "same_length": 0.02}
    row |= {"medians": {"prompt": 30.0, "chosen": 61.0, "rejected": 58.0}}
    row |= {"highs": {"prompt": 80.0, "chosen": 210.0, "rejected": 190.4}}
    for one in records:
        one.config["lengths"] = [row, row | {"split": HOSTILE, "pairs": 90}]
    _, page = written(tmp_path, records)
    for words in ("The pairs", "1,200", "30 / 80", "61 / 210", "58 / 190", "65", "repeat another"):
        assert words in page.text()
    (table,) = [parts.data for parts in [preference_parts(_summary(records), records)]]
    columns = {column.name: [cell.value for cell in column.cells] for column in table.columns}
    assert (columns["repeated"], columns["chosen_longer"]) == ([7, 7], [0.654, 0.654])


def _summary(records):
    return summarize(records, losses=LOSSES, baseline="dpo", metric="preference_accuracy", seeds=(0, 1))


def test_levels_are_means_over_seeds_with_the_model_before_training_first(records):
    summary = summarize(records, losses=LOSSES, baseline="dpo", metric="preference_accuracy", seeds=(0, 1))
    parts = preference_parts(summary, records)
    assert parts is not None
    columns = {column.name: [cell.value for cell in column.cells] for column in parts.levels.columns}
    assert columns["loss"] == [BEFORE, *LOSSES]
    assert columns["margin"] == pytest.approx([0.0, 5.5, 4.5, 4.5, 4.5])
    assert columns["preference_accuracy"] == pytest.approx([0.5, *[0.705] * 4])


def test_a_study_of_which_every_run_failed_still_has_a_page(tmp_path):
    failed = [record(loss, seed, failed=True) for loss in LOSSES for seed in (0, 1)]
    _, page = written(tmp_path, failed)
    assert "The loss is not finite." in page.text()


def test_foreign_text_of_prompts_and_answers_is_only_text(tmp_path):
    records = [record(loss, seed, text=HOSTILE) for loss in ("dpo", HOSTILE) for seed in (0, 1)]
    _, page = written(tmp_path, records, losses=("dpo", HOSTILE))
    assert len(page.all("script")) == 2
    assert not page.all("img")


def test_margins_of_all_seeds_are_put_together_and_none_is_lost(records):
    edges, counts = seen_margins(records, "kto")
    assert (edges[0], edges[-1]) == (-2.0, 3.0)
    assert counts.sum(axis=1).tolist() == [16, 16]
    assert seen_margins(records, "cross_entropy") is None


def test_betas_are_grouped_by_what_the_loss_is_without_them(records):
    summary = summarize(records, losses=LOSSES, baseline="dpo", metric="preference_accuracy", seeds=(0, 1))
    assert by_beta(summary) == {"dpo": {0.1: pytest.approx((0.7, 0.71)), 0.5: pytest.approx((0.7, 0.71))}}


@pytest.mark.parametrize("text", ["dpo", "lrml", "kto", "simpo", "ipo(average=True) + 0.1*cross_entropy", "aql"])
def test_curves_reach_as_far_as_training_did(text):
    curve = objective_curve(text, 7.0)
    assert curve is not None
    assert 7.0 <= max(curve.x) < 10.5
    assert min(curve.x) <= -7.0
    assert math.isfinite(sum(curve.gradient))


def test_terms_on_tokens_have_no_place_along_a_margin():
    assert compared_part("dpo + 0.1*cross_entropy") == "dpo"
    assert objective_curve("cross_entropy", 5.0) is None
    assert objective_curve("no_such_loss", 5.0) is None
