import csv
import io
import math

import pytest
from report_studies import HOSTILE, fake_study, hostile_study
from rich.console import Console

from lossmith.evidence.statistics import PairedComparison
from lossmith.evidence.summary import LossSummary, StudySummary
from lossmith.report.tables import comparison_table, raw_table, to_csv, to_latex, to_markdown, to_rich

EMPTY = {
    "values": {}, "mean": None, "comparison": None, "bootstrap": None, "by_example": None, "holm_p": None,
    "train_seconds": None, "peak_memory_mib": None, "finished": 0, "failed": 0, "errors": (), "is_baseline": False,
}  # fmt: skip


def two_losses(*, name="0.5*focal|x_y", metric="accuracy", **pairs):
    values = {"difference": 0.0614, "low": 0.0402, "high": 0.0826, "p_value": 0.0004, "wins": 5, "losses": 0, "ties": 0}
    values |= {"blocks": 5, "sign_flip_p": 0.0625, "sign_flip_smallest_p": 0.0625} | pairs
    measured = {"train_seconds": 14.25, "peak_memory_mib": 812.5, "finished": 5}
    rows = (
        LossSummary(**EMPTY | measured | {"loss": "cross_entropy", "is_baseline": True,
                    "values": dict.fromkeys(range(5), 0.58), "mean": 0.58, "verdict": "baseline", "sentence": "-"}),
        LossSummary(**EMPTY | measured | {"loss": name, "values": dict.fromkeys(range(5), 0.64), "mean": 0.6414,
                    "comparison": PairedComparison(**values), "holm_p": 0.0012, "verdict": "better", "sentence": "-"}),
        LossSummary(**EMPTY | {"loss": "gone", "verdict": "undecided", "sentence": "-", "failed": 5}),
    )  # fmt: skip
    return StudySummary(
        metric=metric, baseline="cross_entropy", seeds=tuple(range(5)), rows=rows, noise_floor=None, planned=15,
        finished=10, failed=5,
    )  # fmt: skip


def test_csv_holds_raw_numbers_in_their_own_columns():
    assert to_csv(raw_table(two_losses())) == (
        "loss,mean,difference,low,high,p,holm_p,seeds_won,seeds,train_seconds,peak_memory_mib\n"
        "cross_entropy,0.58,,,,,,,5,14.25,812.5\n"
        "0.5*focal|x_y,0.6414,0.0614,0.0402,0.0826,0.0004,0.0012,5,5,14.25,812.5\n"
        "gone,,,,,,,,0,,\n"
    )


def test_markdown_shows_percent_and_points_and_escapes_what_markdown_reads():
    assert to_markdown(comparison_table(two_losses())) == (
        "| loss | mean accuracy (%) | difference to cross\\_entropy \\[95% interval\\] (points) | p (Holm) | seeds won "
        "| training (s) | peak memory (MiB) |\n"
        "| :--- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| cross\\_entropy | 58.0 | baseline | – | – | 14.2 | 812 |\n"
        "| 0.5\\*focal\\|x\\_y | 64.1 | +6.1 \\[4.0, 8.3\\] | 0.001 | 5 of 5 | 14.2 | 812 |\n"
        "| gone | – | – | – | – | – | – |\n"
    )


def test_latex_is_a_booktabs_table_with_real_minus_signs():
    lines = to_latex(comparison_table(two_losses(name="a-b", difference=-0.0061))).splitlines()
    assert lines[1:3] == [r"\begin{tabular}{lrrrrrr}", r"\toprule"]
    assert lines[6] == r"a-b & 64.1 & $-$0.6 {[}4.0, 8.3{]} & 0.001 & 5 of 5 & 14.2 & 812 \\"
    assert lines[7:] == [r"gone & -- & -- & -- & -- & -- & -- \\", r"\bottomrule", r"\end{tabular}"]


def test_nll_is_shown_in_nats_not_in_points():
    header, shown = (
        [column.header for column in comparison_table(two_losses(metric="nll")).columns],
        comparison_table(two_losses(metric="nll")).rows[1],
    )
    assert header[1:3] == ["mean test NLL (nats)", "difference to cross_entropy [95% interval] (nats)"]
    assert [cell.text for cell in shown[1:3]] == ["0.641", "+0.061 [0.040, 0.083]"]


def test_one_pair_has_a_difference_but_no_interval():
    row = comparison_table(two_losses(low=math.nan, high=math.nan, p_value=math.nan)).rows[1]
    assert row[2].text == "+6.1"
    assert to_csv(raw_table(two_losses(low=math.nan))).splitlines()[2].split(",")[3] == ""


@pytest.mark.parametrize("start", ["=", "+", "-", "@", " =", "\t=", "\r@"])
def test_csv_text_never_starts_a_formula_but_numbers_stay_numbers(start):
    name = f"{start}HYPERLINK(1)"
    cells = list(csv.reader(io.StringIO(to_csv(raw_table(two_losses(name=name, difference=-0.5))))))[2]
    assert cells[0].startswith("'")
    assert cells[2] == "-0.5"


def test_csv_gives_hostile_names_back_as_one_field():
    rows = list(csv.reader(io.StringIO(to_csv(raw_table(hostile_study().summary)))))
    assert [len(row) for row in rows] == [11] * 4
    assert rows[1][0] == HOSTILE.replace("\u2028\u2029", "  ")
    assert rows[2][0].startswith("'=cmd|")


def test_markdown_rows_keep_their_cells_and_carry_no_html():
    for line in to_markdown(comparison_table(hostile_study().summary)).splitlines():
        assert len(line.replace("\\\\", "").replace("\\|", "").split("|")) == 9
        assert "<" not in line.replace("\\<", "")


def test_latex_escapes_every_special_character():
    special = to_latex(comparison_table(two_losses(name=r"*[x] _&%#${}~^\ <|>"))).splitlines()[6]
    assert special.startswith(
        r"{*}{[}x{]} \_\&\%\#\$\{\}\textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"\textless{}\textbar{}\textgreater{} &"
    )


def test_the_terminal_shows_markup_as_text_and_no_control_characters():
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(to_rich(comparison_table(two_losses(name="[red]x[/red] \x1b[31m \\"))))
    shown = console.file.getvalue()
    assert "[red]x[/red]  [31m \\" in shown
    assert "+6.1 [4.0, 8.3]" in shown
    assert "\x1b" not in shown


def test_every_loss_of_a_study_is_a_row_in_order():
    study = fake_study(failed={("focal", 0)})
    table = comparison_table(study.summary)
    assert [row[0].value for row in table.rows] == [row.loss for row in study.summary.rows]
    assert table.rows[1][4].text.endswith(" of 4")


def test_no_number_is_lost_in_a_terminal_of_80_columns():
    wide = {"difference": -0.1234, "low": -0.3456, "high": 0.0988, "wins": 4, "ties": 1, "holm_p": 1.0}
    name = "0.4*cross_entropy + 0.6*soft_triple"
    summary = two_losses(name=name, **{key: value for key, value in wide.items() if key != "holm_p"})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(to_rich(comparison_table(summary)))
    shown = console.export_text()
    assert all(len(line) <= 80 for line in shown.splitlines())
    for part in ("64.1", "-12.3 [-34.6, 9.9]", "0.001", "4 of 5", "(1 tied)", "14.2", "812", "0.6*soft_triple"):
        assert part in shown, part
