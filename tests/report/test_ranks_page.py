"""The ranking's figures, tables and page."""

import csv
import io
import json
import re

import numpy as np
import pytest
from ranked_studies import LOSSES, TASKS, fake_ranking, hostile_ranking
from report_page import parse_page
from report_studies import HOSTILE
from test_report_figures import drawn_texts

from lossmith.errors import EvidenceError
from lossmith.evidence import format_difference
from lossmith.explain.text import one_line
from lossmith.report.ranks import average_differences_figure, critical_difference_figure, differences_figure
from lossmith.report.ranks_gallery import ranking_figures
from lossmith.report.ranks_page import ranking_answer, write_ranking
from lossmith.report.ranks_tables import (
    differences_table,
    means_table,
    pairs_table,
    ranking_table,
    raw_datasets_table,
    raw_ranking_table,
    short_table,
)
from lossmith.report.tables import to_csv, to_markdown, to_rich

FILES = {
    "ranks.html", "ranks.csv", "ranks_datasets.csv", "ranks.md", "critical_difference.png", "differences.png",
    "average_differences.png",
}  # fmt: skip
RANKINGS = {
    "few-shot": fake_ranking,
    "three by three": lambda: fake_ranking(LOSSES[:3], TASKS[:3]),
    "two by two": lambda: fake_ranking(LOSSES[:2], TASKS[:2]),
    "one block": lambda: fake_ranking(LOSSES[:4], TASKS[:5], seeds=1),
    "twelve losses, nll": lambda: fake_ranking(
        LOSSES + [f"0.{i}*cross_entropy + 0.{9 - i}*poly(epsilon={i}.5)" for i in range(4)], TASKS[:4], metric="nll"
    ),
    "all equal": lambda: fake_ranking(LOSSES[:4], TASKS[:5], step=0.0),
    "hostile": hostile_ranking,
}


def write(folder, ranking, **options):
    defaults = {"title": "Which loss is best?", "commands": ["lossmith rank a b"], "attributions": {}, "notices": ()}
    return write_ranking(folder, ranking=ranking, **(defaults | options))


@pytest.fixture(scope="module")
def hostile_text(tmp_path_factory):
    attributions = {HOSTILE: HOSTILE}
    page = write(
        tmp_path_factory.mktemp("hostile"), hostile_ranking(), title=HOSTILE, commands=[HOSTILE], notices=[HOSTILE],
        attributions=attributions,
    )  # fmt: skip
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RANKINGS)
def test_no_text_of_a_figure_is_cut_or_overlaps_another(name, monkeypatch):
    for shown in ranking_figures(RANKINGS[name]()):
        texts = drawn_texts(shown.figure, monkeypatch)
        assert texts
        canvas = shown.figure.bbox
        for text, box in texts:
            assert canvas.x0 - 1 <= box.x0, (shown.name, text)
            assert box.x1 <= canvas.x1 + 1, (shown.name, text)
            assert canvas.y0 - 1 <= box.y0, (shown.name, text)
            assert box.y1 <= canvas.y1 + 1, (shown.name, text)
        for place, (text, box) in enumerate(texts):
            for other, other_box in texts[place + 1 :]:
                assert not box.overlaps(other_box.padded(-1)), (shown.name, text, other)


def lengths(axes, width):
    """Ends of the horizontal lines of one width."""
    return [tuple(line.get_xdata()) for line in axes.lines if line.get_linewidth() == width]


def test_the_diagram_places_losses_at_their_ranks_and_joins_what_cannot_be_told_apart():
    ranking = fake_ranking()
    axes = critical_difference_figure(ranking).axes[0]
    begin, end = lengths(axes, 1.2)[0]  # the axis, from rank 1 to the number of losses

    def rank_at(x):
        return 1 + (x - begin) / (end - begin) * (len(LOSSES) - 1)

    marked = sorted(
        rank_at(line.get_xdata()[0])
        for line in axes.lines
        if line.get_markersize() == 6 and len(line.get_xdata()) == 1 and line.get_marker() in "osD^"
    )
    assert marked == pytest.approx(sorted(row.average_rank for row in ranking.rows))
    low, high = lengths(axes, 1.5)[0]
    assert rank_at(high) - rank_at(low) == pytest.approx(ranking.nemenyi.critical_difference)
    averages = {row.loss: row.average_rank for row in ranking.rows}
    joined = [(min(averages[x] for x in group), max(averages[x] for x in group)) for group in ranking.nemenyi.groups]
    bars = [(rank_at(low + 0.04), rank_at(high - 0.04)) for low, high in lengths(axes, 3.5)]
    assert bars == [pytest.approx(ends) for ends in joined]
    assert len(joined) > 1


def test_the_diagram_says_why_it_is_not_there():
    figure = critical_difference_figure(fake_ranking(LOSSES[:2], TASKS[:4]))
    assert "Too few losses or data sets" in figure.texts[0].get_text()


def test_the_heat_table_has_a_row_per_data_set_and_one_for_their_mean():
    ranking = fake_ranking()
    axes = differences_figure(ranking).axes[0]
    (image,) = axes.images
    shown = np.asarray(image.get_array())
    assert shown.shape == (15, 7)
    data = ranking.datasets[3]
    assert shown[3, 2] == pytest.approx(data.means[LOSSES[3]] - data.means[LOSSES[0]])
    assert shown[14, 2] == pytest.approx(ranking.rows[3].tests.over_datasets.difference)
    for text in axes.texts:
        column, row = (int(value) for value in text.get_position())
        verdict = (
            ranking.rows[column + 1].verdict if row == 14 else ranking.datasets[row].within(LOSSES[column + 1]).verdict
        )
        assert ("▲" in text.get_text(), "▼" in text.get_text()) == (verdict == "better", verdict == "worse")


def test_lower_is_better_turns_colours_but_not_numbers():
    ranking = fake_ranking(LOSSES[:3], TASKS[:4], metric="nll", step=0.03)
    axes = differences_figure(ranking).axes[0]
    pairs = ranking.datasets[0].within(LOSSES[2]).comparison
    assert np.asarray(axes.images[0].get_array())[0, 1] == pytest.approx(-pairs.difference)
    text = next(text.get_text() for text in axes.texts if text.get_position() == (1, 0))
    assert text.startswith(format_difference(pairs.difference, "nll", signed=True))
    assert "further left is better" in average_differences_figure(ranking).axes[0].get_xlabel()


def test_the_forest_shows_both_intervals_and_every_data_set_in_points():
    ranking = fake_ranking()
    axes = average_differences_figure(ranking).axes[0]
    tests = ranking.rows[-1].tests  # the last loss is at height 0, drawn first
    thin, thick = lengths(axes, 1.4)[0], lengths(axes, 5)[0]
    assert thin == pytest.approx((100 * tests.over_datasets.low, 100 * tests.over_datasets.high))
    assert thick == pytest.approx((100 * tests.over_blocks.low, 100 * tests.over_blocks.high))
    dots = axes.collections[0].get_offsets()[:, 0]
    assert sorted(dots) == pytest.approx(sorted(100 * value for value in tests.differences.values()))


def test_tables_hold_the_numbers_of_the_ranking():
    ranking = fake_ranking(LOSSES[:3], TASKS[:3])
    table = ranking_table(ranking)
    assert [row[0].value for row in table.rows] == LOSSES[:3]
    assert table.rows[0][3].text == "baseline"
    focal = ranking.rows[1]
    cells = {column.name: column.cells[1] for column in table.columns}
    assert cells["average_rank"].text == f"{focal.average_rank:.2f}"
    assert cells["difference"].value == focal.tests.over_datasets.difference
    assert cells["most"].text.endswith(f" on {focal.tests.most}")
    assert cells["won"].text == f"{focal.tests.over_datasets.wins} of 3"
    means = means_table(ranking).rows[1]
    data = ranking.datasets[1]
    assert means[0].text == TASKS[1]
    assert means[2].text == f"{100 * data.means['focal']:.1f} ({data.ranks['focal']:g})"
    assert len(differences_table(ranking).columns) == 3
    pairs = pairs_table(ranking)
    assert pairs.rows[0][2].value == pairs.rows[1][1].value == ranking.nemenyi.p_values["cross_entropy", "focal"]
    assert pairs.rows[0][1].text == "–"
    assert pairs_table(fake_ranking(LOSSES[:2], TASKS[:3])) is None


def test_csv_files_are_lossless():
    ranking = fake_ranking(LOSSES[:3], TASKS[:3])
    rows = list(csv.DictReader(io.StringIO(to_csv(raw_ranking_table(ranking)))))
    tests = ranking.rows[2].tests
    assert float(rows[2]["high_of_these"]) == tests.over_blocks.high
    assert float(rows[2]["signed_rank_holm_p"]) == tests.holm_p
    assert float(rows[2]["least"]) == tests.differences[tests.least]
    assert rows[2]["least_on"] == tests.least
    assert (rows[0]["difference"], rows[0]["verdict"]) == ("", "baseline")
    long = list(csv.DictReader(io.StringIO(to_csv(raw_datasets_table(ranking)))))
    assert len(long) == 9
    last = ranking.datasets[2].within(LOSSES[2])
    assert (long[8]["dataset"], float(long[8]["holm_p"]), long[8]["verdict"]) == (TASKS[2], last.holm_p, last.verdict)


def test_foreign_text_cannot_break_tables():
    ranking = hostile_ranking()
    rows = list(csv.reader(io.StringIO(to_csv(raw_datasets_table(ranking)))))
    assert {len(row) for row in rows} == {11}
    assert all(cell.startswith("'") for row in rows[1:4] for cell in row[:1])
    for table in (ranking_table(ranking), means_table(ranking), differences_table(ranking)):
        for line in to_markdown(table).splitlines():
            assert "<" not in line.replace("\\<", "")


def test_the_short_table_fits_a_terminal_of_80_columns():
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(to_rich(short_table(fake_ranking())))
    shown = console.export_text()
    assert all(len(line) <= 80 for line in shown.splitlines())
    for part in ("average", "data sets", "14 of 14", "0.6*multi_similarity"):
        assert part in shown, part


def test_all_files_are_written_whole_and_equal_twice(tmp_path):
    for name in ("a", "b"):
        assert write(tmp_path / name, fake_ranking(LOSSES[:3], TASKS[:4])) == tmp_path / name / "ranks.html"
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvidenceError, match="Cannot write results to"):
        write(tmp_path / "file", fake_ranking(LOSSES[:2], TASKS[:2]))


def test_the_page_answers_first_and_says_how_sure(tmp_path):
    ranking = fake_ranking()
    text = parse_page(write(tmp_path, ranking, notices=["Mind the gap."]).read_text(encoding="utf-8")).text()
    assert max(text.index(row.sentence) for row in ranking.rows) < text.index("Ranking")
    assert ranking_answer(ranking) in text
    for said in (*ranking.sentences, "Mind the gap.", "lossmith rank a b"):
        assert said in text
    for row in (row for row in ranking.rows if row.tests):
        assert f"{row.tests.over_datasets.wins} of 14" in text
    markdown = (tmp_path / "ranks.md").read_text(encoding="utf-8")
    assert "> Mind the gap." in markdown
    assert "## All pairs: p of Nemenyi's test" in markdown


def test_the_answer_without_a_winner_says_whether_one_could_have_been_shown():
    none = ranking_answer(fake_ranking(LOSSES[:3], TASKS, step=0.0))
    assert none.startswith("No loss was shown to beat cross_entropy over the 14 data sets. ")
    few = ranking_answer(fake_ranking(LOSSES[:3], TASKS[:3]))
    assert few.startswith(
        "No loss was shown to beat cross_entropy over the 3 data sets, which are too few to show it. "
    )
    best = fake_ranking()
    lowest = min((row for row in best.rows if row.verdict == "better"), key=lambda row: row.average_rank)
    assert ranking_answer(best) == f"{lowest.loss} {lowest.sentence}."


def test_the_page_has_two_scripts_and_nothing_from_foreign_text(hostile_text):
    page = parse_page(hostile_text)
    assert [script.get("type") for script in page.all("script")] == ["application/json", None]
    assert not page.all("img")
    assert not page.all("b")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for tag in ("h1", "title", "code", "li", "pre", "dt", "dd", "th"):
        assert one_line(HOSTILE) in page.text(tag), tag
    assert all(character not in hostile_text for character in "\u2028\u2029")


def test_the_page_loads_nothing_and_its_policy_forbids_it(hostile_text):
    page = parse_page(hostile_text)
    for tag, attributes in page.elements:
        for key in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            target = attributes.get(key, "") if tag not in {"td", "th"} else ""
            assert target.startswith(("#", "data:")) or not target, (tag, target)
    assert page.all("meta")[1]["content"].startswith("default-src 'none'; script-src 'sha256-")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_inline_json_is_the_ranking(hostile_text):
    data = json.loads(re.search(r'id="lossmith-data">(.*?)</script>', hostile_text, re.S)[1])
    ranking = hostile_ranking()
    assert data["title"] == HOSTILE
    assert [row["loss"] for row in data["ranking"]["rows"]] == [row.loss for row in ranking.rows]
    first = data["ranking"]["nemenyi"]["p_values"][0]
    assert first == [HOSTILE, f"=cmd|{HOSTILE}", pytest.approx(next(iter(ranking.nemenyi.p_values.values())))]
