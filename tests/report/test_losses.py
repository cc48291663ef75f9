"""Losses on screen: facts, tables, drawings, pictures; plain text where the console is no terminal."""

import io
import sys

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from rich.table import Table

import lossmith
from lossmith.errors import CompositionError, EvidenceError, MissingExtraError, ObjectiveInputError
from lossmith.explain import NoCurveError, loss_curve, loss_facts
from lossmith.objectives import _registry, objective
from lossmith.report.losses import (
    CALLED_WITH,
    MODULE_SETTINGS,
    curve_figure,
    losses_table,
    show_loss,
)

MARKUP = "[red]Widen[/red] [link=http://x]it[/link] :smile: | <b>`code`</b>."


@pytest.fixture
def hostile_loss():
    @objective(family="token", item="token", source="https://example.org/[bold]")
    def hostile_loss(token_logps, *, form: str = "[green]|x"):
        return -token_logps

    hostile_loss.__doc__ = f"{MARKUP}\n\n[bold]With[/bold] p.\n\nArgs:\n    form: [blue]Which[/blue] form.\n"
    yield "hostile"
    del _registry._REGISTRY["hostile"]


def printed(action, *, width=80, terminal=False):
    console = Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system="truecolor" if terminal else None
    )
    action(console)
    return console.file.getvalue()


def shown(text, **options):
    return printed(lambda console: show_loss(text, console), **options)


def flat(text):
    return " ".join(text.split())


def test_a_loss_is_shown_with_all_its_facts():
    text = flat(shown("focal(gamma=1)"))
    assert text.startswith("focal(gamma=1.0) Raise the probability of the label, mostly where it is still low")
    for fact in (
        r"With p the probability of the label, \ell = -(1-p)^\gamma \log p Family",
        "token, one loss per token",
        "Aliases none",
        "Reads token_logps",
        "Call loss(logits, labels)",
        "a quarter of log 2",
        "Batch not coupled: several micro-batches equal one batch",
        'Source Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 4, https://arxiv.org/abs/1708.02002.',
        "Deviation no class balance factor inside (give weights)",
        "Use when ",
        "Relatives ",
        "Elsewhere ",
        "gamma=1.0 (default 2.0) How strongly confident tokens are discounted",
        "One token, 2 classes",
        "Loss over the probability p of the label",
        "Gradient with respect to the label's logit z",
        "Implied target",
    ):
        assert fact in text


def test_proxies_aliases_and_coupling_are_said():
    triple, lovasz = flat(shown("soft_triple")), flat(shown("lovasz"))
    assert "loss(embeddings, labels), built with num_classes and embedding_dim (it owns proxies)" in triple
    assert "centers_per_class=10 Proxies of each class" in triple
    assert "normalize=True Whether embeddings are scaled to unit length" in flat(shown("supcon"))
    assert "Implied target" not in triple
    assert lovasz.startswith("lovasz_softmax")
    assert "Aliases lovasz" in lovasz
    assert "coupled: several micro-batches do not equal one batch; with region='sequence' they do" in lovasz


def test_the_call_of_every_family():
    six = "chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_lengths, rejected_lengths"
    assert f"Call loss({six}); what it does not read may be left out Use when" in flat(shown("dpo"))
    assert f"Call loss({six}) Use when" in flat(shown("dpo_length_normalized"))
    assert "Call loss(logps, ref_logps, desirable, kl) Use when" in flat(shown("kto"))
    assert "Call loss(logps, ref_logps, desirable, kl); what it does not read may be left out" in flat(shown("bco"))
    assert set(CALLED_WITH) == {record.family for record in lossmith.list_losses()}


@pytest.mark.parametrize("record", lossmith.list_losses(), ids=str)
def test_every_loss_can_be_called_as_shown(record):
    """The names are those of the module, and what is read beyond them the module keeps itself."""
    sizes = dict.fromkeys(record.required, 3)
    module = lossmith.loss(record.name, **sizes)
    shown_inputs = CALLED_WITH[record.family].split(", ")
    assert tuple(shown_inputs) == module.inputs[: len(shown_inputs)]
    assert set(module.required) <= set(shown_inputs)


@pytest.mark.parametrize("record", lossmith.list_losses(), ids=str)
def test_every_hyper_parameter_has_a_meaning(record):
    meanings = {**MODULE_SETTINGS, **loss_facts(record).meanings}
    assert all(meanings.get(name) for name in record.hyperparameters)


def test_no_meaning_is_left_over():
    used = {name for record in lossmith.list_losses() for name in record.hyperparameters}
    assert set(MODULE_SETTINGS) <= used


def test_relatives_and_other_frameworks_are_shown():
    text = flat(shown("lrml"))
    assert "Use when Labels are noisy" in text
    assert "Relatives dpo far below the dent" in text
    assert 'Elsewhere TRL: loss_type="discopop"' in text
    assert "Aliases discopop" in text
    assert "Loss over the log-ratio margin of the pair in nats" in text
    assert "running_kl=False Whether kl is averaged over all calls" in flat(shown("kto"))


def test_a_schedule_has_facts_and_no_curve():
    text = flat(shown("cross_entropy -> focal @ 0.3"))
    assert "No curve: 'cross_entropy -> focal @ 0.3' changes over training" in text


def test_a_sum_shows_each_term_and_one_curve():
    text = shown("0.6*cross_entropy + 0.4*lovasz(classes='present')[answer]")
    words = flat(text)
    assert words.startswith("0.6*cross_entropy + 0.4*lovasz_softmax[answer]")
    assert "0.6 times cross_entropy Does Raise the probability" in words
    assert "0.4 times lovasz_softmax on the labels of scope 'answer' Does Raise the Jaccard index" in words
    assert "https://arxiv.org/abs/1705.08790" in words
    assert text.count("Loss over") == 1


def test_a_sum_of_logits_and_embeddings_has_facts_and_says_why_no_curve(tmp_path):
    text = flat(shown("0.4*cross_entropy + 0.6*soft_triple"))
    assert "0.6 times soft_triple" in text
    assert "No curve: '0.4*cross_entropy + 0.6*soft_triple' reads logits and embeddings" in text
    with pytest.raises(NoCurveError, match="draw its terms"):
        show_loss("0.4*cross_entropy + 0.6*soft_triple", Console(file=io.StringIO()), png=tmp_path / "no.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("focall", ObjectiveInputError, "Did you mean 'focal'"),
        ("focal(gama=2)", ObjectiveInputError, "Did you mean 'gamma'"),
        ("focal(gamma=-2)", ObjectiveInputError, "`gamma` must be >= 0, got -2"),
        ("0.5*focal +", CompositionError, r"\^"),
    ],
)
def test_bad_names_raise_before_anything_is_printed(text, error, message):
    console = Console(file=io.StringIO())
    with pytest.raises(error, match=message):
        show_loss(text, console)
    assert console.file.getvalue() == ""


def test_no_escape_codes_unless_the_console_is_a_terminal():
    assert "\x1b" not in shown("focal")
    coloured = shown("focal", terminal=True)
    assert "\x1b[" in coloured
    assert "\u28c0" in coloured


def test_lines_fit_the_console():
    for width in (50, 80, 120):
        for name in ("focal", "soft_triple", "lrml", "kto", "0.6*cross_entropy + 0.4*lovasz_softmax"):
            assert max(map(len, shown(name, width=width).splitlines())) <= width


def test_foreign_markup_stays_text(hostile_loss):
    text = flat(shown(hostile_loss)) + flat(printed(lambda console: console.print(losses_table("token"))))
    for part in (
        "[red]Widen[/red]",
        "[bold]With[/bold] p.",
        ":smile:",
        "form='[green]|x'",
        "[blue]Which[/blue] form.",
        "https://example.org/[bold]",
    ):
        assert part in text


def test_without_plotext_the_facts_are_still_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotext", None)
    text = flat(shown("focal"))
    assert "Lin et al. 2017" in text
    assert "pip install 'lossmith[train]'" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_lists_everything_and_keeps_words_whole(width):
    assert isinstance(losses_table(), Table)
    text = printed(lambda console: console.print(losses_table()), width=width)
    assert max(map(len, text.splitlines())) <= width
    words = text.replace("│", " ").replace(",", " ").split()
    for record in lossmith.list_losses():
        assert {record.name, record.family, record.item, *record.aliases, *record.reads} <= set(words)
        assert {f"{name}={value!r}" for name, value in record.hyperparameters.items()} <= set(words)
        assert set(record.summary.replace(",", " ").split()) <= set(words)


def test_one_family_and_an_unknown_one():
    text = printed(lambda console: console.print(losses_table("metric")))
    assert "supcon" in text
    assert "focal" not in text
    with pytest.raises(ObjectiveInputError, match="Did you mean 'metric'"):
        losses_table("metrics")


def test_the_picture_is_written_whole_and_shows_lines(tmp_path):
    path = tmp_path / "new" / "focal.png"
    text = printed(lambda console: show_loss("focal", console, png=path))
    assert str(path) in text
    assert [file.name for file in path.parent.iterdir()] == ["focal.png"]
    pixels = imread(path)
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 1000
    blue = np.abs(pixels[..., :3] - np.array([0, 0x72, 0xB2]) / 255).max(-1) < 0.02
    thirds = np.array_split(blue, 3, axis=1)
    assert all(third.sum() > 300 for third in thirds)


def test_the_figure_holds_the_numbers_of_the_curve():
    curve = loss_curve("focal", points=9)
    loss, gradient, target = curve_figure(curve).axes
    assert tuple(loss.lines[0].get_ydata()) == curve.loss
    assert tuple(gradient.lines[0].get_ydata()) == curve.gradient
    assert tuple(target.lines[0].get_ydata()) == curve.x
    assert tuple(target.lines[1].get_ydata()) == curve.implied_target
    assert len(curve_figure(loss_curve("supcon", points=9)).axes) == 2


def test_curves_beside_share_the_panels_and_do_not_squash_the_first():
    focal, beside = loss_curve("focal", points=9), loss_curve("cross_entropy", points=9)
    figure = curve_figure(focal, beside)
    loss, gradient, target = figure.axes
    assert [tuple(line.get_ydata()) for line in loss.lines] == [focal.loss, beside.loss]
    assert tuple(gradient.lines[1].get_ydata()) == beside.gradient
    assert tuple(target.lines[2].get_ydata()) == beside.implied_target
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["focal", "cross_entropy"]
    low, high = loss.get_ylim()
    assert low < min(beside.loss)
    assert high > max(beside.loss)
    # dft stays below 0.37: cross-entropy leaves its panel at half as much again.
    low, high = curve_figure(loss_curve("dft", points=99), loss_curve("cross_entropy", points=99)).axes[0].get_ylim()
    assert -0.05 < low < 0
    assert 0.5 < high < 0.6


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvidenceError, match=r"Cannot write `.*x\.png`"):
        show_loss("focal", Console(file=io.StringIO()), png=tmp_path / "file" / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="`matplotlib` is needed to draw a loss as a picture"):
        show_loss("focal", Console(file=io.StringIO()), png=tmp_path / "x.png")
