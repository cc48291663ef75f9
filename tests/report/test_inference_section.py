"""The inference section: losses by methods, what the proxies are, calibration, and reports of older studies."""

import csv
import io
from dataclasses import replace

import pytest
from report_page import parse_page
from report_studies import HOSTILE, fake_study, hostile_study

from lossmith.evidence import paired_t, summarize
from lossmith.report.inference import CLASS_MEANS, OWN_PROXIES, UNTRAINED, inference_parts, method_name, ways_table
from lossmith.report.tables import to_csv
from lossmith.report.write import write_report

SOFT_TRIPLE = "0.4*cross_entropy + 0.6*soft_triple"
MEANS = {"cross_entropy": 0.58, "0.4*cross_entropy + 0.6*supcon": 0.62, SOFT_TRIPLE: 0.64}
GAINS = {"proxies": 0.01, "mixture": 0.03, "neighbours": -0.05}


def with_methods(study, *, metric="accuracy", calibrated=True):
    """The study with the metrics of all methods in its finished runs."""
    study.records = [_with_methods(run, calibrated) if run.status == "finished" else run for run in study.records]
    losses = [row.loss for row in study.summary.rows]
    study.summary = summarize(
        study.records, losses=losses, baseline=study.summary.baseline, metric=metric, seeds=study.summary.seeds
    )
    return study


def _with_methods(run, calibrated):
    spread = 0.003 * (run.seed % 3) * len(run.loss) / 10
    head = {"macro_f1": run.metrics["accuracy"] - 0.01, "weighted_f1": run.metrics["accuracy"] + 0.01, "ece": 0.12}
    metrics = run.metrics | head
    for method, gain in GAINS.items():
        for name in ("accuracy", "macro_f1", "weighted_f1"):
            metrics[f"{method}_{name}"] = metrics[name] + gain + spread
        metrics[f"{method}_nll"] = metrics["nll"] - gain
    config = {**run.config, "mixture": 0.4}
    if calibrated:
        metrics |= {"calibrated_nll": metrics["nll"] - 0.02 - spread, "calibrated_ece": 0.04}
        config["temperatures"] = {"head": 1.5 + run.seed, "proxies": 9.0}
    return replace(run, metrics=metrics, config=config)


@pytest.fixture(scope="module")
def parts():
    study = with_methods(fake_study(MEANS))
    return inference_parts(study.summary, study.records), study.records


def values(records, loss, metric):
    return [run.metrics[metric] for run in records if run.loss == loss]


def cells(table, loss, method):
    return {
        column.name: column.cells[place]
        for place, row in enumerate(table.rows)
        if (row[0].value, row[1].value) == (loss, method)
        for column in table.columns
    }


def test_every_loss_and_method_has_a_row_with_its_means(parts):
    found, records = parts
    assert [(row[0].value, row[1].value) for row in found.table.rows] == [
        (loss, method) for loss in MEANS for method in ("head", "proxies", "mixture", "neighbours")
    ]
    row = cells(found.table, SOFT_TRIPLE, "mixture")
    for metric in ("accuracy", "macro_f1", "weighted_f1", "nll"):
        expected = values(records, SOFT_TRIPLE, f"mixture_{metric}")
        assert row[metric].value == pytest.approx(sum(expected) / 5)
    assert row["accuracy"].text == f"{100 * row['accuracy'].value:.1f}"


def test_differences_are_to_the_same_method_and_to_the_plain_baseline(parts):
    found, records = parts
    row = cells(found.table, SOFT_TRIPLE, "neighbours")
    mine = values(records, SOFT_TRIPLE, "neighbours_accuracy")
    same = paired_t(values(records, "cross_entropy", "neighbours_accuracy"), mine)
    plain = paired_t(values(records, "cross_entropy", "accuracy"), mine)
    assert row["same"].value == pytest.approx(same.difference)
    assert row["plain"].value == pytest.approx(plain.difference)
    assert row["plain"].text == f"{100 * plain.difference:+.1f} [{100 * plain.low:.1f}, {100 * plain.high:.1f}]"
    assert same.difference != pytest.approx(plain.difference)


def test_the_baseline_is_named_where_there_is_nothing_to_subtract(parts):
    found, _ = parts
    head, mixture = (cells(found.table, "cross_entropy", method) for method in ("head", "mixture"))
    assert (head["same"].text, head["plain"].text) == ("baseline", "its head")
    assert mixture["same"].text == "baseline"
    assert mixture["plain"].text.startswith("+3.")


def test_comparisons_are_counted_once(parts):
    found, _ = parts
    # Two losses by four methods to the same method, and three losses by three methods to the head.
    assert found.comparisons.startswith("17 different comparisons")
    assert "not corrected for their number" in found.comparisons
    assert not [
        word for word in ("better", "worse") if word in "".join(c.text for row in found.table.rows for c in row)
    ]


def test_proxies_say_whose_they_are(parts):
    found, _ = parts
    assert method_name(SOFT_TRIPLE, "proxies") == OWN_PROXIES
    assert method_name("0.4*cross_entropy + 0.6*supcon", "proxies") == CLASS_MEANS
    assert method_name("cross_entropy", "proxies") == CLASS_MEANS
    assert method_name("no_such_loss", "proxies") == "proxies"
    assert method_name("soft_triple -> cross_entropy @ 0.3", "proxies") == CLASS_MEANS
    assert method_name("cross_entropy -> 0.5*cross_entropy + 0.5*soft_triple @ 0.3", "proxies") == OWN_PROXIES
    words = dict(found.methods)
    assert "those that it learnt" in words["proxies"]
    assert "mean embedding of its training texts" in words["proxies"]
    assert words["mixture"].endswith("0.4 of the head's and 0.6 of the proxies'")
    study = with_methods(fake_study({"cross_entropy": 0.5, "focal": 0.5}))
    assert "none of these losses owns proxies" in dict(inference_parts(study.summary, study.records).methods)["proxies"]


def test_a_head_that_was_never_trained_is_called_so(tmp_path):
    study = with_methods(fake_study({"cross_entropy": 0.5, "0.5*supcon + 0.5*nt_xent": 0.3, SOFT_TRIPLE: 0.6}))
    found = inference_parts(study.summary, study.records)
    alone = "0.5*supcon + 0.5*nt_xent"
    names = {(row[0].value, row[1].value): row[1].text for row in found.table.rows}
    assert names[alone, "head"] == UNTRAINED
    assert names[alone, "mixture"] == f"mixture ({UNTRAINED})"
    assert (names[alone, "proxies"], names[alone, "neighbours"]) == (CLASS_MEANS, "neighbours")
    trained = [name for (loss, method), name in names.items() if loss != alone and method in ("head", "mixture")]
    assert trained == ["head", "mixture"] * 2
    assert [row[0].text for row in found.calibration.rows] == ["cross_entropy", f"{alone} ({UNTRAINED})", SOFT_TRIPLE]
    head = dict(found.methods)["head"]
    assert head.startswith(
        "the classification layer, as every classifier is used; 0.5*supcon + 0.5*nt_xent reads embed"
    )
    page = parse_page(write_report(tmp_path, **vars(study)).read_text(encoding="utf-8")).text()
    assert f"{alone} ({UNTRAINED})" in page
    assert f"mixture ({UNTRAINED})" in page
    assert UNTRAINED not in str(inference_parts(*_usual()).markdown)


def _usual():
    study = with_methods(fake_study(MEANS))
    return study.summary, study.records


def test_differences_are_in_the_metric_that_decides():
    study = with_methods(fake_study(MEANS), metric="mixture_macro_f1")
    found = inference_parts(study.summary, study.records)
    assert found.table.columns[-1].header.startswith("macro F1 against the head of cross_entropy")
    row = cells(found.table, SOFT_TRIPLE, "mixture")
    expected = paired_t(
        values(study.records, "cross_entropy", "mixture_macro_f1"),
        values(study.records, SOFT_TRIPLE, "mixture_macro_f1"),
    )
    assert row["same"].value == pytest.approx(expected.difference)
    by_nll = inference_parts(with_methods(fake_study(MEANS), metric="nll").summary, study.records)
    assert by_nll.table.columns[-1].header.startswith("accuracy against")


def test_calibration_has_the_four_numbers_and_the_temperature_of_the_head(parts):
    found, records = parts
    row = {column.name: column.cells[2] for column in found.calibration.columns}
    assert row["loss"].value == SOFT_TRIPLE
    assert row["nll"].value == pytest.approx(sum(values(records, SOFT_TRIPLE, "nll")) / 5)
    assert (row["ece"].text, row["calibrated_ece"].text) == ("12.0", "4.0")
    assert row["temperature"].text == "3.50"
    pairs = paired_t(values(records, "cross_entropy", "calibrated_nll"), values(records, SOFT_TRIPLE, "calibrated_nll"))
    assert row["difference"].value == pytest.approx(pairs.difference)
    assert found.calibration.columns[-2].cells[0].text == "baseline"


def test_without_a_fitted_temperature_the_calibrated_columns_are_empty():
    study = with_methods(fake_study(MEANS, seeds=2), calibrated=False)
    found = inference_parts(study.summary, study.records)
    row = {column.name: column.cells[1].text for column in found.calibration.columns}
    assert row["ece"] == "12.0"
    assert {row[name] for name in ("calibrated_nll", "calibrated_ece", "difference", "temperature")} == {"–"}
    assert "calibrated_nll" not in to_csv(found.raw)


def test_the_raw_table_holds_every_number(parts):
    found, records = parts
    rows = list(csv.DictReader(io.StringIO(to_csv(found.raw))))
    assert len(rows) == 3 * (4 * 4 + 3)
    row = next(r for r in rows if (r["loss"], r["method"], r["metric"]) == (SOFT_TRIPLE, "proxies", "weighted_f1"))
    same = paired_t(
        values(records, "cross_entropy", "proxies_weighted_f1"), values(records, SOFT_TRIPLE, "proxies_weighted_f1")
    )
    assert (float(row["same_method_low"]), float(row["same_method_p_value"])) == (same.low, same.p_value)
    assert int(row["seeds"]) == 5


def test_seeds_where_one_side_lacks_the_metric_make_no_pair():
    study = with_methods(fake_study(MEANS, failed={("cross_entropy", 1)}))
    place = next(i for i, run in enumerate(study.records) if (run.loss, run.seed) == (SOFT_TRIPLE, 3))
    run = study.records[place]
    study.records[place] = replace(run, metrics={k: v for k, v in run.metrics.items() if "neighbours" not in k})
    found = inference_parts(study.summary, study.records)
    row = next(
        r for r in csv.DictReader(io.StringIO(to_csv(found.raw)))
        if (r["loss"], r["method"], r["metric"]) == (SOFT_TRIPLE, "neighbours", "accuracy")
    )  # fmt: skip
    seeds = (0, 2, 4)
    by_seed = {(r.loss, r.seed): r.metrics for r in study.records}
    expected = paired_t(
        [by_seed["cross_entropy", s]["neighbours_accuracy"] for s in seeds],
        [by_seed[SOFT_TRIPLE, s]["neighbours_accuracy"] for s in seeds],
    )
    assert (float(row["same_method_difference"]), row["seeds"]) == (expected.difference, "4")


def test_older_studies_have_no_section_and_no_files(tmp_path):
    study = fake_study(seeds=2)
    assert inference_parts(study.summary, study.records) is None
    page = write_report(tmp_path, **vars(study)).read_text(encoding="utf-8")
    assert "Inference" not in parse_page(page).text()
    assert not list(tmp_path.glob("inference*"))


def test_the_section_is_on_the_page_and_in_two_files(tmp_path):
    study = with_methods(fake_study(MEANS))
    text = write_report(tmp_path, **vars(study)).read_text(encoding="utf-8")
    page = parse_page(text)
    shown = page.text()
    for said in (
        "Inference",
        OWN_PROXIES,
        CLASS_MEANS,
        "Are the probabilities to be believed?",
        "17 different comparisons",
    ):
        assert said in shown, said
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert (tmp_path / "inference.csv").read_text().startswith("loss,method,metric,mean,seeds,same_method_difference")
    markdown = (tmp_path / "inference.md").read_text()
    assert "- neighbours: the class of the training text with the nearest embedding (cosine)" in markdown
    assert "proxies (learnt)" in markdown


def test_hostile_names_stay_text(tmp_path):
    study = with_methods(hostile_study())
    text = write_report(tmp_path, **vars(study)).read_text(encoding="utf-8")
    page = parse_page(text)
    assert [script.get("type") for script in page.all("script")] == ["application/json", None]
    assert not page.all("img")
    assert HOSTILE not in (tmp_path / "inference.md").read_text(encoding="utf-8")
    assert "against the head of" in page.text("th")


def test_the_terminal_shows_each_loss_by_every_way(parts):
    study = with_methods(fake_study(MEANS))
    table = ways_table(study.summary, study.records)
    assert [column.header for column in table.columns] == ["accuracy by", "head", "proxies", "mixture", "neighbours"]
    mean = sum(values(study.records, SOFT_TRIPLE, "neighbours_accuracy")) / len(study.summary.seeds)
    (row,) = [row for row in table.rows if row[0].value == SOFT_TRIPLE]
    assert row[4].text == f"{100 * mean:.1f}"
    plain = fake_study(MEANS)
    assert ways_table(plain.summary, plain.records) is None
