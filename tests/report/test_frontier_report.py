"""The page of a study of sentiment: frontier, areas, tables, answers; foreign text stays text."""

import csv
import io

import pytest

from lossmith.evidence import RunRecord, summarize
from lossmith.report.frontier import frontier_figure, frontier_parts
from lossmith.report.write import write_report

LOSSES = {
    "dpo(beta=0.05)": (20.0, 0.80), "dpo": (9.0, 0.70), "dpo(beta=0.5)": (2.0, 0.55),
    "ipo(beta=0.05)": (24.0, 0.86), "ipo": (8.0, 0.72), "pfl": (0.6, 0.46),
}  # fmt: skip
HOSTILE = "<script>alert(1)</script> good"


def record(loss: str, seed: int, *, status: str = "finished") -> RunRecord:
    kl, reward = LOSSES[loss]
    lift = 0.01 * seed
    sampling = {
        "seeds": [0, 1], "kl": [kl + seed, kl + seed + 0.2], "reward": [reward + lift, reward + lift + 0.02],
        "start_reward": [0.40, 0.42],
    }  # fmt: skip
    metrics = {"reward": reward + lift + 0.01, "kl": kl + seed + 0.1, "kl_sampled": kl + 0.3, "kl_per_token": kl / 30}
    metrics |= {"kl_released": kl / 25, "stopped": 0.25, "start_reward": 0.41, "start_stopped": 0.5}
    answers = [
        {"prompt": "The film", "before": " was.", "before_reward": 0.4, "answer": HOSTILE, "reward": reward + lift}
    ]
    config = {"kind": "sentiment", "sampling": sampling, "answers": answers, "train_texts": 50, "test_prompts": 12}
    if status == "failed":
        return RunRecord(loss=loss, seed=seed, status="failed", config={"kind": "sentiment"}, error="It diverged.")
    scores = {"reward": [reward, reward + 2 * lift], "kl": [kl, kl]}
    return RunRecord(loss=loss, seed=seed, status="finished", config=config, metrics=metrics, scores=scores)


def study():
    records = [record(loss, seed) for loss in LOSSES for seed in range(3)]
    records[-1] = record("pfl", 2, status="failed")
    summary = summarize(records, losses=list(LOSSES), baseline="dpo(beta=0.05)", metric="reward", seeds=(0, 1, 2))
    return summary, records


def test_tables_hold_points_areas_and_the_policy_before_training():
    summary, records = study()
    parts = frontier_parts(summary, records, {"kl_range": None})
    assert parts is not None
    assert [row[0].text for row in parts.points.rows] == ["(before training)", *LOSSES]
    first = {column.name: column.cells[0].text for column in parts.points.columns}
    assert first == {
        "loss": "(before training)", "reward": "41.0", "kl": "0", "kl_sampled": "0", "kl_per_token": "0",
        "kl_released": "0", "stopped": "50.0",
    }  # fmt: skip
    dpo = {column.name: column.cells[1].text for column in parts.points.columns}
    assert dpo["kl"] == "21.10 [18.62, 23.58]"
    assert dpo["reward"] == "82.0 [79.5, 84.5]"
    assert dpo["kl_released"] == "0.800"
    assert [row[0].text for row in parts.areas.rows] == ["dpo", "ipo", "pfl"]
    # Up to the smallest KL of the baseline's furthest point over seeds and sampling seeds.
    assert parts.found.high == pytest.approx(20.0)
    areas = {column.name: [cell.text for cell in column.cells] for column in parts.areas.columns}
    assert areas["area"][2] == areas["difference"][2] == areas["difference"][0] == "–"
    assert areas["reaches"][2] == "0.60"
    assert "pfl was measured up to KL 0.6 only" in parts.found.notices[0]
    assert frontier_parts(summary, records, {"kl_range": [0, 0.5]}).found.notices == ()


def test_the_picture_has_a_line_per_loss_and_the_start():
    summary, records = study()
    parts = frontier_parts(summary, records, {})
    axes = frontier_figure(parts.found).axes[0]
    starts = [line for line in axes.lines if line.get_marker() == "*"]
    assert [tuple(line.get_xydata()[0]) for line in starts] == [(0, pytest.approx(41.0))]
    joined = [line for line in axes.lines if len(line.get_xdata()) == 4 and line.get_linewidth() < 2]
    assert list(joined[0].get_ydata()) == pytest.approx([41.0, 57.0, 72.0, 82.0])
    assert {text.get_text() for text in axes.texts} == {"before training", "0.05", "0.1", "0.5"}


def test_the_page_is_whole_and_harmless(tmp_path):
    summary, records = study()
    page = write_report(
        tmp_path, summary=summary, records=records, title="Sentiment", settings={"kl_range": None}, commands=["x"]
    ).read_text(encoding="utf-8")
    written = {path.name for path in tmp_path.iterdir()}
    assert {"frontier.png", "frontier.csv", "frontier.md", "areas.md", "beta_sweep.png"} <= written
    assert "confusion.png" not in written
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "Reward against divergence" in page
    assert "50 training pairs in a seed, 12 test prompts answered 2 times" in page
    assert "bootstrap range (3 blocks: not a 95% interval)" in page
    rows = list(csv.DictReader(io.StringIO((tmp_path / "frontier.csv").read_text())))
    assert [row["loss"] for row in rows] == list(LOSSES)
    assert (rows[1]["family"], rows[1]["beta"], rows[1]["seeds"]) == ("dpo", "0.1", "3")
    assert float(rows[1]["kl"]) == pytest.approx(10.1)
    assert rows[5]["seeds"] == "2"


def test_nothing_finished_is_a_page_too(tmp_path):
    records = [record("dpo", 0, status="failed")]
    summary = summarize(records, losses=["dpo"], baseline="dpo", metric="reward", seeds=(0,))
    assert frontier_parts(summary, records, {}) is None
    page = write_report(tmp_path, summary=summary, records=records, title="t", settings={}, commands=[])
    assert "It diverged." in page.read_text(encoding="utf-8")
