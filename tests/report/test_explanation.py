import csv
import io
import json
import math
import re

import numpy as np
import pytest
from explained_studies import FAITHFUL, LOSSES, fake_explained
from matplotlib.backends.backend_agg import FigureCanvasAgg
from report_page import parse_page
from report_studies import HOSTILE

from lossmith.errors import DataError, EvidenceError
from lossmith.explain.canvas import house_style
from lossmith.explain.text import MISSING, one_line
from lossmith.report.explanation import csv_tables, write_explanation
from lossmith.report.explanation_gallery import explanation_figures
from lossmith.report.explanation_highlights import highlighted
from lossmith.report.explanation_words import (
    compared,
    disagreement_sentences,
    faithfulness_table,
    findings,
    measured,
    measures_table,
)

T_2 = 4.302652729749464
"""The 97.5% point of Student's t with two degrees of freedom, from a table."""


@pytest.fixture(scope="module")
def study():
    return fake_explained()


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_explanation(folder, study, title="What did the losses change?", commands=["lossmith explain runs/mr"])
    return folder


@pytest.fixture(scope="module")
def hostile_text(tmp_path_factory):
    study = fake_explained(
        losses=(HOSTILE, f"=cmd|{HOSTILE}", f"_{HOSTILE}"),
        names=(HOSTILE, f"_{HOSTILE}"),
        word=HOSTILE.replace(" ", ""),
        notices=(HOSTILE,),
        attribution=HOSTILE,
    )
    page = write_explanation(tmp_path_factory.mktemp("hostile"), study, title=HOSTILE, commands=[HOSTILE])
    return page.read_text(encoding="utf-8")


def test_all_files_are_written_and_equal_twice(folder, study, tmp_path):
    write_explanation(tmp_path, study, title="What did the losses change?", commands=["lossmith explain runs/mr"])
    names = {path.name for path in folder.iterdir()}
    assert names >= {"explain.html", "embedding_tsne.png", "geometry.csv", "attributions.csv", "stability.png"}
    assert names == {path.name for path in tmp_path.iterdir()}
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_page_runs_and_loads_nothing_foreign(hostile_text):
    page = parse_page(hostile_text)
    assert [script.get("type") for script in page.all("script")] == ["application/json", None]
    assert not page.all("img")
    assert not page.all("b")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    policy = page.all("meta")[1]["content"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for tag, attributes in page.elements:
        for key in ("src", "href", "xlink:href", "action", "data"):
            target = attributes.get(key, "") if tag not in {"td", "th"} else ""
            assert target.startswith(("#", "data:")) or not target, (tag, target)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", hostile_text))
    assert page.elements[-1][0] == "script"


def test_foreign_text_is_shown_as_it_is(hostile_text):
    page = parse_page(hostile_text)
    shown = one_line(HOSTILE)
    for tag in ("h1", "title", "code", "li", "pre", "h4"):
        assert shown in page.text(tag), tag
    assert shown.replace(" ", "") in page.text("span").replace(" ", "")


def test_ids_are_unique(folder):
    page = parse_page((folder / "explain.html").read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = {label for _, a in page.elements for label in a.get("aria-labelledby", "").split()}
    assert labels <= set(ids)


def test_the_inline_json_holds_the_measures(folder, study):
    text = (folder / "explain.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="lossmith-data">(.*?)</script>', text, re.S)[1])
    assert data["measures"]["purity"]["focal"]["1"] == measured(study)["purity"]["focal"][1]


def test_a_difference_stands_with_its_interval_over_seeds(study):
    values = measured(study)["ece"]
    gaps = [values["focal"][seed] - values["cross_entropy"][seed] for seed in (0, 1, 2)]
    mean = sum(gaps) / 3
    half = T_2 * math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 2 / 3)
    pairs = compared(values, "cross_entropy", "focal")
    assert (pairs.difference, pairs.low, pairs.high) == pytest.approx((mean, mean - half, mean + half))
    table = measures_table(study, measured(study))
    (cell,) = [row[3] for row in table.rows if row[0].value == "ece" and row[1].value == "focal"]
    assert cell.text == f"{100 * mean:+.1f} [{100 * (mean - half):.1f}, {100 * (mean + half):.1f}]"


def test_measures_are_read_off_the_results(study):
    values = measured(study)
    by_hand = [run.purity for run in study.geometry.runs if (run.model, run.seed) == ("focal", 2)]
    assert [values["purity"]["focal"][2]] == by_hand
    far = study.by_common_distance.frame().query("model == 'focal' and seed == 2 and decile >= 8")
    assert values["far_accuracy"]["focal"][2] == pytest.approx(
        (far["accuracy"] * far["count"]).sum() / far["count"].sum()
    )
    hard = study.weights.frame().query("model == 'focal' and seed == 2 and place == 'logits' and decile >= 8")
    assert values["hard_share"]["focal"][2] == pytest.approx(hard["share"].sum())


def test_the_words_name_clear_differences_only(study):
    said = findings(study, measured(study))
    assert len(said) == 2
    assert said[1].startswith(f"{LOSSES[2]} against cross_entropy, mean of 3 seeds: ")
    # A difference whose interval holds 0 is not named.
    assert "sufficiency" not in said[1]
    alike = fake_explained(lift=0.0, geometry=fake_explained(losses=LOSSES[:1]).geometry)
    for loss in alike.losses[1:]:
        pairs = compared(measured(alike)["accuracy"], alike.baseline, loss)
        assert pairs.difference == 0
    one = fake_explained(seeds=(4,))
    assert all("with one seed nothing is known of the spread" in text for text in findings(one, measured(one)))


def test_every_method_of_attribution_stands_beside_a_random_order(study, folder):
    table = faithfulness_table(study)
    assert [column.name for column in table.columns] == [
        "method", "loss", "comprehensiveness", "sufficiency", "infidelity", "unexplained",
    ]  # fmt: skip
    assert [(row[0].value, row[1].value) for row in table.rows] == [(m, loss) for m in FAITHFUL for loss in LOSSES]
    frame = study.faithfulness.frame().groupby(["method", "model"]).mean(numeric_only=True)
    for row in table.rows:
        for column, cell in list(zip(table.columns, row, strict=True))[2:]:
            mean = frame.loc[(row[0].value, row[1].value), column.name]
            if row[0].value == "random" and column.name in ("infidelity", "unexplained"):
                assert (cell.value, cell.text) == (None, MISSING)
            else:
                assert cell.value == pytest.approx(mean)
                assert cell.text == f"{mean:.3f}"
    page = parse_page((folder / "explain.html").read_text(encoding="utf-8"))
    for name in ("gradient x input", "occlusion", "random order"):
        assert name in page.text("th"), name
    known = {cell.text for row in table.rows for cell in row[2:]}
    assert known <= {text for tag, text in page.texts if tag == "td"}


def test_the_weight_on_each_example_is_kept(study):
    frame = study.weights.examples_frame()
    own = frame.query("model == 'focal' and seed == 2 and place == 'logits'")
    given = study.weights.weights["focal"][2]
    np.testing.assert_array_equal(own["norm"], given.norms["logits"])
    np.testing.assert_array_equal(own["difficulty"], given.difficulty)
    assert own["example"].tolist() == list(range(60))
    table = csv_tables(study)["example_gradients"]
    names = [column.name for column in table.columns]
    assert names == ["model", "seed", "place", "example", "norm", "difficulty", "row", "label"]
    last = dict(zip(names, (cell.value for cell in table.rows[-1]), strict=True))
    assert (last["model"], last["row"], last["label"]) == (LOSSES[-1], 2 * last["example"], "positive")
    assert len(table.rows) == 3 * 3 * 60
    # What a decile holds can be told from the examples again.
    hard = own.sort_values("difficulty")["norm"].tail(6).sum() / own["norm"].sum()
    rows = study.weights.frame().query("model == 'focal' and seed == 2 and decile == 10")
    assert rows["share"].item() == pytest.approx(hard)


def test_highlights_are_a_result_like_the_others(study):
    frame = study.highlights.frame()
    assert list(frame.columns) == ["model", "seed", "example", "position", "segment", "piece", "target", "weight"]
    one = study.highlights.texts["focal"][10]
    own = frame.query("model == 'focal' and example == 10")
    np.testing.assert_array_equal(own["weight"], one.weights["integrated_gradients"])
    assert "".join(own["piece"]) == study.samples[0].examples[10].text
    assert set(own["target"]) == {one.target}
    figure = study.highlights.plot(10)
    assert len(figure.axes) == 3
    widths = [bar.get_width() for bar in figure.axes[1].patches]
    np.testing.assert_allclose(sorted(widths), sorted(own["weight"]))
    with pytest.raises(DataError, match=r"`example` must be one of 0, 5, 10, .*, got 3"):
        study.highlights.plot(3)


def test_disagreements_are_counted_in_words(study):
    one = study.disagreements.losses[1]
    gained, lost = (sum(len(rows) for rows in by.values()) for by in (one.gained, one.lost))
    every = set.intersection(*(set(rows) for rows in one.gained.values()))
    said = disagreement_sentences(study)[1]
    assert f"gets {gained} examples right that cross_entropy gets wrong and {lost} the other way round" in said
    assert said.endswith(f"{len(every)} are gained in every seed.")
    (_, alone) = disagreement_sentences(fake_explained(seeds=(0,)))
    assert "seed" not in alone


def test_highlighted_texts_are_disagreements_with_their_tokens(study):
    found = highlighted(study)
    assert found
    sample = study.samples[0]
    for text in found:
        (one,) = [one for one in study.disagreements.losses if one.model == text.loss]
        example = sample.rows.tolist().index(text.row)
        assert example in (one.gained if text.gained else one.lost)[0]
        assert [seen.right for seen in text.seen] == [not text.gained, text.gained]
        for seen in text.seen:
            assert "".join(piece.text for piece in seen.pieces) == sample.examples[example].text
            assert max(abs(piece.weight) for piece in seen.pieces) == pytest.approx(1)
            assert 0.5 < seen.probability <= 1


def test_colours_follow_sign_and_weight(folder, study):
    page = parse_page((folder / "explain.html").read_text(encoding="utf-8"))
    pieces = [attributes for attributes in page.all("span") if attributes.get("class", "").startswith("piece")]
    assert len(pieces) == sum(len(seen.pieces) for text in highlighted(study) for seen in text.seen)
    for attributes in pieces:
        weight, opacity = float(attributes["title"]), float(re.search(r"([\d.]+)\)$", attributes["style"])[1])
        assert ("0, 114, 178" in attributes["style"]) == (attributes["class"] == "piece for") == (weight >= 0)
        assert opacity == pytest.approx(0.6 * abs(weight), abs=0.01)


def test_csv_files_are_lossless_and_harmless(study):
    tables = csv_tables(study)
    geometry = list(zip(*tables["geometry"].rows, strict=True))
    assert [float(cell.text) for cell in geometry[2]] == [run.purity for run in study.geometry.runs]
    hostile = csv_tables(fake_explained(losses=("a", "=cmd"), word="x"))["geometry"]
    from lossmith.report.tables import to_csv

    rows = list(csv.DictReader(io.StringIO(to_csv(hostile))))
    assert {row["model"] for row in rows} == {"a", "'=cmd"}
    rows = tables["disagreeing_examples"].rows
    names = [column.name for column in tables["disagreeing_examples"].columns]
    first = dict(zip(names, (cell.value for cell in rows[0]), strict=True))
    assert first["row"] == 2 * first["example"]
    assert first["text"] == study.samples[first["seed"]].examples[first["example"]].text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seeds": (3,)},
        {"losses": LOSSES[:1]},
        {"losses": tuple(f"focal(gamma={g}.5)" for g in range(12)), "seeds": (0, 1)},
    ],
)
def test_figures_of_many_few_and_single_losses_are_drawn(changes):
    for shown in explanation_figures(fake_explained(**changes)):
        with house_style():
            FigureCanvasAgg(shown.figure).draw()
        assert np.isfinite(shown.figure.get_size_inches()).all()


def test_one_loss_alone_gives_a_page(tmp_path):
    page = write_explanation(tmp_path, fake_explained(losses=LOSSES[:1], seeds=(0,)), title="x")
    text = parse_page(page.read_text(encoding="utf-8")).text()
    assert "There is no loss beside cross_entropy" in text
    assert "nan" not in parse_page(page.read_text(encoding="utf-8")).text("td")


def test_a_folder_that_cannot_be_written_is_one_sentence(study, tmp_path):
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    with pytest.raises(EvidenceError, match="Cannot write results to"):
        write_explanation(tmp_path / "taken", study, title="x")
