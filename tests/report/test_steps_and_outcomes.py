"""The tables of steps and of mended errors, and the bars of outcomes, on numbers that can be counted by hand."""

import csv
import io

import pytest
from matplotlib.colors import to_hex

from lossmith.evidence import METRICS, STEP_ERRORS, STEP_GAINS, RunRecord, paired_t, summarize
from lossmith.report.outcomes import COLOURS, mended_table, outcome_counts, outcomes_figure
from lossmith.report.steps import raw_steps_table, step_rows, steps_table
from lossmith.report.tables import to_csv
from lossmith.report.wording import METRIC_NAMES, metric_name


def run_of(loss, seed, *, metrics=None, outcomes=(), status="finished"):
    return RunRecord(
        loss=loss, seed=seed, status=status, config={}, metrics=dict(metrics or {}), outcomes=list(outcomes),
        outputs=["x"] * len(outcomes),
    )  # fmt: skip


def summary_of(records, losses=("ce", "focal"), metric="exact_match"):
    seeds = sorted({record.seed for record in records})
    return summarize(records, losses=list(losses), baseline=losses[0], metric=metric, seeds=seeds)


STEPS = {
    "ce": [{"exact_match": 0.3, "iou": 0.5, "released_iou": 0.4, "missing_steps": 0.2, "nll": 0.7},
           {"exact_match": 0.4, "iou": 0.6, "released_iou": 0.5, "missing_steps": 0.1, "nll": 0.6}],
    "focal": [{"exact_match": 0.5, "iou": 0.55, "released_iou": 0.3, "missing_steps": 0.05, "nll": 0.65},
              {"exact_match": 0.5, "iou": 0.70, "released_iou": 0.5, "missing_steps": 0.05, "nll": 0.5}],
}  # fmt: skip


@pytest.fixture
def step_records():
    return [run_of(loss, seed, metrics=found) for loss, runs in STEPS.items() for seed, found in enumerate(runs)]


def test_the_steps_table_has_every_metric_there_is_beside_its_released_version(step_records):
    table = steps_table(step_rows(summary_of(step_records), step_records))
    shown = [[cell.text for cell in row] for row in table.rows]
    iou, released = (paired_t([0.5, 0.6], [0.55, 0.70]), paired_t([0.4, 0.5], [0.3, 0.5]))
    assert shown[2] == ["steps: IoU", "ce", "55.0", "baseline", "45.0", "baseline"]
    assert shown[3] == [
        "steps: IoU", "focal",
        "62.5", f"+7.5 [{100 * iou.low:.1f}, {100 * iou.high:.1f}]",
        "40.0", f"-5.0 [{100 * released.low:.1f}, {100 * released.high:.1f}]",
    ]  # fmt: skip
    assert [row[0] for row in shown[::2]] == [
        "exact match", "steps: IoU", "steps: missing\N{NO-BREAK SPACE}↓", "test NLL (nats)\N{NO-BREAK SPACE}↓",
    ]  # fmt: skip
    assert shown[1][4:] == ["–", "–"]
    assert shown[7][2] == "0.575"
    assert shown[7][3].startswith("-0.075 [")


def test_without_a_released_metric_its_columns_are_not_there(step_records):
    for record in step_records:
        del record.metrics["released_iou"]
    table = steps_table(step_rows(summary_of(step_records), step_records))
    assert [column.name for column in table.columns] == ["metric", "loss", "mean", "difference"]


def test_steps_as_csv_hold_fractions_and_a_metric_without_a_value_holds_nothing(step_records):
    step_records[3].metrics["iou"] = float("nan")
    rows = list(csv.DictReader(io.StringIO(to_csv(raw_steps_table(step_rows(summary_of(step_records), step_records))))))
    assert list(rows[0]) == ["metric", "loss", "mean", "difference", "low", "high", "released_mean",
                             "released_difference", "released_low", "released_high"]  # fmt: skip
    focal = next(row for row in rows if (row["metric"], row["loss"]) == ("iou", "focal"))
    assert (float(focal["mean"]), focal["low"]) == (0.55, "")  # one seed is left
    assert float(focal["difference"]) == pytest.approx(0.05)
    assert float(focal["released_difference"]) == pytest.approx(-0.05)
    baseline = next(row for row in rows if (row["metric"], row["loss"]) == ("iou", "ce"))
    assert (float(baseline["mean"]), baseline["difference"]) == (0.55, "")


def test_every_special_name_of_a_metric_is_of_a_metric():
    assert set(METRIC_NAMES) <= set(METRICS)
    assert len({metric_name(metric) for metric in METRICS}) == len(METRICS)
    assert not [metric for metric in METRICS if "_" in metric_name(metric)]
    steps = (*STEP_GAINS, *STEP_ERRORS, "wrong_results")
    assert not [metric for metric in steps if not metric_name(metric).startswith("steps: ")]


OUTCOMES = {
    ("ce", 0): ["correct", "correct", "missing_steps", "missing_steps", "unparsed", "correct_other_steps"],
    ("ce", 1): ["correct", "wrong_result", "wrong_result", "missing_steps", "unparsed", "correct"],
    ("focal", 0): ["correct", "wrong_result", "correct", "correct_other_steps", "missing_steps", "unparsed"],
    ("focal", 1): ["unparsed", "correct", "wrong_result", "wrong_result", "correct", "correct"],
}


@pytest.fixture
def outcome_records():
    return [
        run_of(loss, seed, metrics={"exact_match": 0.5 + 0.1 * seed}, outcomes=found)
        for (loss, seed), found in OUTCOMES.items()
    ]


def test_errors_mended_and_made_are_paired_by_seed_and_problem(outcome_records):
    table = mended_table(summary_of(outcome_records), outcome_records)
    assert [column.name for column in table.columns] == ["loss", "wrong_result", "missing_steps", "unparsed"]
    assert [[cell.text for cell in row] for row in table.rows] == [["focal", "1 / 1", "2 / 0", "1 / 2"]]


def test_runs_on_other_test_sets_and_right_answers_alone_have_nothing_to_mend(outcome_records):
    summary = summary_of(outcome_records)
    for record in outcome_records[2:]:
        record.outcomes.append("correct")
    assert mended_table(summary, outcome_records) is None
    for record in outcome_records:
        record.outcomes[:] = ["correct", "correct_other_steps"]
    assert mended_table(summary, outcome_records) is None


def test_the_outcomes_of_all_finished_seeds_are_one_bar_of_shares(outcome_records):
    gone = run_of("focal", 2, outcomes=["correct"] * 5, status="failed")
    assert outcome_counts([*outcome_records, gone], ["ce", "focal", "none"]) == {
        "ce": {"correct": 4, "correct_other_steps": 1, "missing_steps": 3, "wrong_result": 2, "unparsed": 2},
        "focal": {"correct": 5, "correct_other_steps": 1, "missing_steps": 1, "wrong_result": 3, "unparsed": 2},
    }
    figure = outcomes_figure(outcome_records, ["ce", "focal"])
    bars = [(bar.get_y(), bar.get_x(), bar.get_width(), to_hex(bar.get_facecolor())) for bar in figure.axes[0].patches]
    upper = [bar for bar in bars if bar[0] > 0]  # the baseline, on top
    shares = [400 / 12, 100 / 12, 200 / 12, 300 / 12, 200 / 12]
    assert [width for _, _, width, _ in upper] == pytest.approx(shares)
    assert [start for _, start, _, _ in upper] == pytest.approx([sum(shares[:i]) for i in range(5)])
    order = ["correct", "correct_other_steps", "wrong_result", "missing_steps", "unparsed"]
    assert [colour for *_, colour in upper] == [COLOURS[name] for name in order]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "correct", "correct, other steps", "wrong result", "missing steps", "no answer found",
    ]  # fmt: skip


def test_nothing_finished_is_a_picture_too():
    assert "No run finished" in outcomes_figure([], ["ce"]).texts[0].get_text()
