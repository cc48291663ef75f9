"""The drawing in the terminal: shape, limits, and no escape codes."""

import pytest

from lossmith.errors import MissingExtraError
from lossmith.explain import loss_curve
from lossmith.explain.terminal import curve_text, value_limits

CURVE = loss_curve("focal", points=39)


def test_three_panels_of_plain_text_within_the_width():
    text = curve_text(CURVE, width=60)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("┌") == 3
    titles = [line for line in text.splitlines() if line[0].isalpha()]
    assert [title.split()[0] for title in titles] == ["Loss", "Gradient", "Implied"]
    assert text == curve_text(CURVE, width=60)  # nothing is left over from the first drawing


def test_a_metric_loss_has_two_panels():
    assert curve_text(loss_curve("supcon", points=19)).count("┌") == 2


@pytest.mark.parametrize(
    ("text", "ticks"),
    [
        ("focal", ["0", "0.25", "0.5", "0.75", "1"]),
        ("supcon", ["-1", "-0.5", "0", "0.5", "1"]),
        ("lrml", ["-100", "-50", "0", "50", "100"]),
        ("dpo(beta=0.17)", ["-29.41", "-14.71", "0", "14.71", "29.41"]),
        ("kto", ["-50", "-25", "0", "25", "50"]),
    ],
)
@pytest.mark.parametrize("points", [2, 39])
def test_the_axis_runs_to_the_ends_of_the_line(text, ticks, points):
    drawn = curve_text(loss_curve(text, points=points))
    assert [line.split() for line in drawn.splitlines() if line.split() == ticks]


def test_a_falling_loss_is_drawn_falling():
    panel = curve_text(CURVE, width=70).split("Gradient")[0].splitlines()
    rows = [line for line in panel if line[:5].endswith(("┤", "│")) or "┤" in line or line.strip().startswith("│")]
    first_ink = [min((i for i, c in enumerate(row) if "\u2801" <= c <= "\u28ff"), default=None) for row in rows]
    places = [place for place in first_ink if place is not None]
    assert len(places) > 5
    assert places == sorted(places)


def test_a_flat_target_stays_flat():
    target = curve_text(loss_curve("cross_entropy", points=39)).split("Implied")[1]
    inked = [line for line in target.splitlines() if any("\u2801" <= c <= "\u28ff" for c in line)]
    assert len(inked) == 1
    assert value_limits([2.0, 2.0]) == (1.5, 2.5)
    assert value_limits([2.0, 3.0], [0.0, 1.0]) == (0.0, 3.0)


def test_a_narrow_terminal_still_gets_a_picture():
    assert max(map(len, curve_text(CURVE, width=5).splitlines()[1:10])) <= 30


def test_without_plotext_one_sentence_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "plotext", None)
    with pytest.raises(MissingExtraError, match=r"`plotext` is needed to draw .* pip install 'lossmith\[train\]'"):
        curve_text(CURVE)
