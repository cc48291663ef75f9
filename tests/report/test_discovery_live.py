"""What a discovery says while it measures."""

import io

from rich.console import Console

from lossmith.report.discovery_live import RaceProgress


def test_a_line_now_and_then_where_it_is_no_terminal():
    text, now = io.StringIO(), [0.0]
    bar = RaceProgress(Console(file=text, width=200), clock=lambda: now[0])
    with bar:
        for second in range(0, 101, 5):
            now[0] = float(second)
            # The first takes as long as three others: it reads a model.
            bar.moved("round 1, small", 4 + max(0, second // 5 - 2), 44)
        # Another rung begins anew, and a finished one needs no line.
        bar.moved("round 1, [tiny]", 0, 2)
        now[0] = 200.0
        bar.moved("round 1, [tiny]", 2, 2)
    lines = text.getvalue().splitlines()
    assert len(lines) == 5
    # One evaluation in the 5 s after the first, and 38 are left.
    assert lines[0] == "round 1, small: 6 of 44 evaluations, about 190 s left"
    assert lines[-1] == "round 1, small: 22 of 44 evaluations, about 110 s left"


def test_a_bar_in_a_terminal():
    text = io.StringIO()
    with RaceProgress(Console(file=text, force_terminal=True, width=120)) as bar:
        bar.moved("round 2, [toy]", 3, 30)
        bar._bar.refresh()
        assert "round 2, [toy]" in text.getvalue()
        assert "3/30" in text.getvalue()
        assert "evaluations" not in text.getvalue()
