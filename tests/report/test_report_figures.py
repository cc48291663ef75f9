import math
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from completion_studies import choice_study, completion_study, hostile_completions
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text
from report_studies import DEMO_MEANS, fake_record, fake_study, hostile_study

from lossmith.explain.canvas import house_style, inline_svg, loss_styles, png_bytes
from lossmith.report.confusion import confusion_counts, confusion_figure, row_shares
from lossmith.report.figures import curves_figure, forest_figure, mean_curve, seeds_figure
from lossmith.report.gallery import study_figures

TWELVE = DEMO_MEANS | {f"0.{i}*cross_entropy + 0.{10 - i}*poly(epsilon={i}.5)": 0.5 + 0.02 * i for i in range(1, 8)}
STUDIES = {
    "demo": fake_study,
    "twelve losses, two failed": lambda: fake_study(TWELVE, failed={("focal", 1), ("focal", 2)}),
    "one seed": lambda: fake_study(seeds=1),
    "all failed": lambda: fake_study(failed={(loss, seed) for loss in DEMO_MEANS for seed in range(5)}),
    "baseline failed": lambda: fake_study(failed={("cross_entropy", seed) for seed in range(5)}),
    "77 classes": lambda: fake_study(classes=77, examples=1000, seeds=3),
    "10 classes": lambda: fake_study(classes=10, seeds=2),
    "nll": lambda: fake_study(metric="nll"),
    "baseline alone": lambda: fake_study({"cross_entropy": 0.5}),
    "hostile": hostile_study,
    "completions": completion_study,
    "completions, twelve losses": lambda: completion_study(TWELVE, seeds=2, failed={("focal", 1)}),
    "completions, all failed": lambda: completion_study({"cross_entropy": 0.4}, failed={("cross_entropy", 0)}, seeds=1),
    "completions, hostile": hostile_completions,
    "choices": choice_study,
}


def drawn_texts(figure, monkeypatch):
    """Texts that are really drawn (ticks beyond an axis are not), with their boxes in pixels."""
    seen = []
    draw = Text.draw

    def record(text, renderer):
        if text.get_visible() and text.get_text().strip():
            seen.append((text.get_text(), text.get_window_extent(renderer)))
        draw(text, renderer)

    canvas = FigureCanvasAgg(figure)
    with house_style():
        canvas.draw()  # settles the layout
        with monkeypatch.context() as patch:
            patch.setattr(Text, "draw", record)
            canvas.draw()
    return seen


@pytest.mark.parametrize("name", STUDIES)
def test_no_text_of_a_figure_is_cut_or_overlaps_another(name, monkeypatch):
    study = STUDIES[name]()
    for shown in study_figures(study.summary, study.records):
        texts = drawn_texts(shown.figure, monkeypatch)
        assert texts
        canvas = shown.figure.bbox
        for text, box in texts:
            assert canvas.x0 - 1 <= box.x0, (shown.name, text)
            assert box.x1 <= canvas.x1 + 1, (shown.name, text)
            assert canvas.y0 - 1 <= box.y0, (shown.name, text)
            assert box.y1 <= canvas.y1 + 1, (shown.name, text)
        # Turned labels have boxes that overlap though their letters do not.
        level = [(text, box) for text, box in texts if not re.match(r"intent \d", text)]
        for place, (text, box) in enumerate(level):
            for other, other_box in level[place + 1 :]:
                inner = other_box.padded(-1)
                assert not box.overlaps(inner), (shown.name, text, other)


def test_the_forest_shows_differences_intervals_and_the_noise_floor_in_points():
    summary = fake_study().summary
    axes = forest_figure(summary).axes[0]
    supcon = next(row for row in summary.rows if row.loss.endswith("supcon")).comparison
    lines = [list(np.atleast_1d(line.get_xdata())) for line in axes.lines]
    assert [supcon.difference * 100] in lines
    assert [supcon.low * 100, supcon.high * 100] in lines
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert band.x1 == pytest.approx(summary.noise_floor.half_width * 100)
    assert band.x0 == pytest.approx(-summary.noise_floor.half_width * 100)
    assert len(axes.get_yticks()) == 4


def test_every_finished_seed_is_a_point_and_failed_ones_are_said():
    summary = fake_study(failed={("focal", 3)}).summary
    figure = seeds_figure(summary)
    points = [collection.get_offsets() for collection in figure.axes[0].collections]
    assert [len(offsets) for offsets in points] == [5, 4, 5, 5, 5]
    assert sorted(points[1][:, 0]) == pytest.approx(sorted(v * 100 for v in summary.rows[1].values.values()))
    assert any("1 failed" in text.get_text() for text in figure.axes[0].texts)


def test_learning_curves_show_plain_nll_and_accuracy_but_not_the_objective():
    study = fake_study()
    figure = curves_figure(study.records, list(DEMO_MEANS), baseline="cross_entropy")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["training NLL (nats)", "validation accuracy (%)"]
    assert [len(axes.lines) for axes in figure.axes] == [5 * 6, 5 * 6]
    focal = [record.curves["validation_accuracy"][-1][1] for record in study.records if record.loss == "focal"]
    mean_of_focal = figure.axes[1].lines[11].get_ydata()
    assert mean_of_focal[-1] == pytest.approx(100 * sum(focal) / 5)


def test_a_mean_curve_keeps_to_shared_steps():
    assert mean_curve([[(1, 1.0), (2, 2.0), (3, 9.0)], [(2, 4.0), (3, 11.0)]]) == [(2, 3.0), (3, 10.0)]
    assert mean_curve([]) == []


def test_confusion_counts_have_true_classes_as_rows_and_leave_out_failed_runs():
    runs = [
        fake_record("focal", 0, 0.5, labels=[0, 0, 1, 2], predictions=[0, 1, 1, 0], classes=3),
        fake_record("focal", 1, 0.5, labels=[0], predictions=[1], classes=3),
        fake_record("focal", 2, 0.5, failed=True, classes=3),
    ]
    counts = confusion_counts(runs, classes=3)
    assert counts.tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 0]]
    assert row_shares(counts)[0].tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert row_shares(np.zeros((2, 2), dtype=np.int64)).tolist() == [[0, 0], [0, 0]]


def test_cells_carry_text_up_to_twelve_classes_only():
    for classes, written in ((2, 4), (12, 144), (13, 0), (77, 0)):
        study = fake_study({"focal": 0.5}, classes=classes, seeds=1)
        figure = confusion_figure(study.records, ["focal"])
        assert len(figure.axes[0].texts) == written


def test_a_loss_looks_the_same_everywhere_and_different_from_the_others():
    styles = loss_styles(list(TWELVE), "cross_entropy")
    assert len({(style.colour, style.marker, str(style.dashes)) for style in styles.values()}) == 12
    study = fake_study()
    focal = loss_styles(list(DEMO_MEANS), "cross_entropy")["focal"].colour
    forest = forest_figure(study.summary).axes[0]
    # The uppermost row is drawn last: its ends, their caps, its point.
    assert [line.get_color() for line in forest.lines[-3:]] == [focal] * 3
    curves = curves_figure(study.records, list(DEMO_MEANS), baseline="cross_entropy").axes[0]
    assert [line.get_color() for line in curves.lines[6:12]] == [focal] * 6
    points = seeds_figure(study.summary).axes[0].collections[1]
    assert to_hex(points.get_facecolor()[0]) == focal


def test_svg_ids_start_with_the_name_of_the_figure_and_all_references_resolve():
    study = fake_study(failed={("focal", 0)})
    for shown in study_figures(study.summary, study.records):
        svg = inline_svg(shown.figure, name=shown.name, title="t", description="d")
        root = ElementTree.fromstring(svg)
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert len(ids) == len(set(ids))
        assert all(identifier.startswith(f"{shown.name}-") for identifier in ids)
        references = set(re.findall(r"url\(#([^)]*)\)", svg)) | set(re.findall(r'href="#([^"]*)"', svg))
        assert references <= set(ids)
        assert "<style" not in svg
        assert "<metadata" not in svg


def test_svg_takes_neutral_colours_from_the_page_and_keeps_text_as_text():
    svg = inline_svg(forest_figure(fake_study().summary), name="forest", title="a < b", description="d\u2028e")
    assert "var(--ink)" in svg
    assert "#1f2328" not in svg
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert "0.4*cross_entropy + 0.6*supcon" in texts
    root = ElementTree.fromstring(svg)
    assert (root.get("role"), root.get("aria-labelledby")) == ("img", "forest-title forest-desc")
    assert [root[0].text, root[1].text] == ["a < b", "d e"]


def test_dollars_are_never_mathematics_and_underscores_hide_no_legend_entry():
    losses = {"$\\frac{1}$": 0.5, "_$x$": 0.6, "$": 0.55}
    study = fake_study(losses, seeds=2)
    for shown in study_figures(study.summary, study.records):
        root = ElementTree.fromstring(inline_svg(shown.figure, name=shown.name, title="", description=""))
        texts = [element.text for element in root.iter("text")]
        if shown.name != "forest":
            assert {"$\\frac{1}$", "_$x$", "$"} <= set(texts)


def test_dollars_in_a_message_are_not_mathematics_either():
    failed = fake_study({"$x$": 0.5, "focal": 0.5}, seeds=1, failed={("$x$", 0)})
    svg = inline_svg(forest_figure(failed.summary), name="forest", title="", description="")
    assert [element.text for element in ElementTree.fromstring(svg).iter("text")] == [
        "No loss could be compared with $x$: too few runs finished."
    ]


def test_a_users_matplotlibrc_changes_nothing():
    plain = png_bytes(forest_figure(fake_study().summary))
    with matplotlib.rc_context({"font.size": 30, "text.usetex": True, "axes.facecolor": "red"}):
        assert png_bytes(forest_figure(fake_study().summary)) == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_curves_with_holes_are_drawn_without_them():
    record = fake_record("focal", 0, 0.5, curves={"train_nll": [[1, 0.5], [2, math.nan], [3, math.inf], [4, 0.4]]})
    figure = curves_figure([record], ["focal"], baseline="focal")
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[1, 4], [1, 4]]
