"""The generated catalogue: the committed pages are what the docstrings say, complete, linked and readable."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import lossmith
from lossmith import cli
from lossmith.errors import EvidenceError, MissingExtraError
from lossmith.explain import loss_curve, loss_facts
from lossmith.objectives import get_record
from lossmith.report import catalogue
from lossmith.report.catalogue import COMMAND, catalogue_pages, losses_markdown, picture, update_readme, write_catalogue
from lossmith.report.catalogue_guide import BESIDE, NOTES, PAGES, SPANS
from lossmith.report.losses import MODULE_SETTINGS
from lossmith.report.markdown import prose, table

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "losses"
RECORDS = lossmith.list_losses()
NAMES = {record.name for record in RECORDS}
FORBIDDEN = ("operatorname", "mbox", "phantom", "newcommand", "def", "href", "require")
"""Macros that GitHub refuses to show."""


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return catalogue_pages()


@pytest.fixture(scope="module")
def sections(pages) -> dict[str, str]:
    """Name of a loss -> its section."""
    parts = {}
    for name, text in pages.items():
        if name != "README.md":
            _, *found = re.split(r"^## (\w+)$", text, flags=re.MULTILINE)
            assert not set(found[::2]) & set(parts)
            parts |= dict(zip(found[::2], found[1::2], strict=True))
    return parts


def formulas(text: str) -> list[str]:
    inline = re.sub(r"```math.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"```math\n(.*?)\n```", text, flags=re.DOTALL) + re.findall(r"\$`(.+?)`\$", inline)


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def test_the_committed_pages_are_the_generated_ones(pages):
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    stale = [name for name in {**committed, **pages} if committed.get(name) != pages.get(name)]
    assert not stale, f"Run `{COMMAND}`."
    assert catalogue_pages() == pages


def test_every_page_names_the_command_that_makes_it(pages):
    assert set(pages) == {"README.md", *(f"{page}.md" for page in PAGES)}
    for text in pages.values():
        assert text.startswith(f"<!-- Generated from the docstrings by `{COMMAND}`")
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
        assert "\n\n\n" not in re.sub(r"```python.*?```", "code", text, flags=re.DOTALL)


def test_every_loss_has_one_section(sections):
    assert set(sections) == NAMES


def test_every_loss_has_a_small_picture_and_no_picture_is_left_over(pages):
    shown = [name for text in pages.values() for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)]
    files = {path.name: path.stat().st_size for path in FOLDER.glob("*.png")}
    assert sorted(shown) == sorted(f"{name}.png" for name in NAMES) == sorted(files)
    assert max(files.values()) <= 30_000
    assert sum(files.values()) <= 2_000_000
    assert all(imread(FOLDER / name).shape[1] > 900 for name in files)


def test_every_link_leads_somewhere(pages):
    anchors = {
        name: {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)}
        for name, text in pages.items()
    }
    count = 0
    for page, text in pages.items():
        prose_only = re.sub(r"```math.*?```", "", text, flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)]+)\)", prose_only):
            file, _, anchor = link.partition("#")
            count += 1
            if file.endswith(".png"):
                assert (FOLDER / file).is_file()
            else:
                assert not anchor or anchor in anchors[file or page], (page, link)
                assert (file or page) in pages
    assert count > 500


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_a_section_says_everything(record, sections):
    section, facts = sections[record.name], loss_facts(record)
    assert section.count("```math") == facts.formula.count("$$") / 2 >= 1
    for title in ("Use when", "Value", "Closest relatives", "Elsewhere", "Source", "Deviation"):
        (text,) = re.findall(rf"^\*\*{title}\.\*\* (.+)$", section, flags=re.MULTILINE)
        assert len(text) > 3
    meanings = {**MODULE_SETTINGS, **facts.meanings}
    for name, default in record.hyperparameters.items():
        assert f"| `{name}` | `{default!r}` | {prose(meanings[name])[:20]}" in section
    assert record.source.partition("#")[0] in section
    assert all(f"`{name}`" in section for name in (*record.reads, *record.aliases))
    assert f"lossmith.objectives.{record.function.__name__}`" in section
    assert hasattr(lossmith.objectives, record.function.__name__)
    assert f'lossmith.loss("{record.name}"' in section
    (relatives,) = re.findall(r"^\*\*Closest relatives\.\*\* (.+)$", section, flags=re.MULTILINE)
    linked = re.findall(r"\[`(\w+)`\]\((\w+)\.md#(\w+)\)", relatives)
    assert [name for name, _, _ in linked if name != record.name]
    assert {name for name, _, _ in linked} - {record.name} == set(facts.related)
    for name, page, anchor in linked:
        assert anchor == name
        assert get_record(name).family == PAGES[page].family


def test_what_other_frameworks_call_alike_is_not_linked(sections):
    (text,) = re.findall(r"^\*\*Elsewhere\.\*\* (.+)$", sections["cross_entropy"], flags=re.MULTILINE)
    assert "PyTorch: `cross_entropy`, same value" in text


def test_records_are_told_in_words(sections):
    assert "`mean_class_logps` (only where `label_smoothing` is not 0)" in sections["cross_entropy"]
    assert "`chosen_lengths` (only with `average`)" in sections["ipo"]
    assert "Looking for `label_smoothing`? That is [`cdpo`](preference.md#cdpo)." in sections["dpo"]
    assert "`num_classes` x `centers_per_class` x `embedding_dim`" in sections["soft_triple"]
    assert 'lossmith.loss("soft_triple", num_classes=..., embedding_dim=...)' in sections["soft_triple"]
    assert "Alias `discopop`." in sections["lrml"]
    assert "coupled: several micro-batches do not equal one batch" in sections["mile"]


def test_formulas_follow_githubs_rules(pages):
    count = 0
    for page, text in pages.items():
        for formula in formulas(text):
            count += 1
            assert formula.strip() == formula
            assert "\n\n" not in formula
            assert "$" not in formula
            bare = formula.replace(r"\{", "").replace(r"\}", "")
            assert bare.count("{") == bare.count("}"), (page, formula)
            assert len(re.findall(r"\\left\b", formula)) == len(re.findall(r"\\right\b", formula)), (page, formula)
            assert re.findall(r"\\begin\{(\w+)", formula) == re.findall(r"\\end\{(\w+)", formula)
            assert not set(re.findall(r"\\(\w+)", formula)) & set(FORBIDDEN), (page, formula)
        without = re.sub(r"```math.*?```|\$`.+?`\$", "", text, flags=re.DOTALL)
        assert "$" not in without, page
        assert len(re.findall(r"^```", text, flags=re.MULTILINE)) % 2 == 0
    assert count > 300


def test_tables_keep_their_columns(pages):
    for text in pages.values():
        for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_the_guide_names_losses_only(pages):
    advice = " ".join(text for page in PAGES.values() for _, text in page.guide)
    named = set(re.findall(r"`(\w+)`", advice))
    assert len(named & NAMES) >= 50
    assert named - NAMES == {"label_smoothing"}
    start = pages["README.md"].index("## How to choose")
    assert "[`entropy_adaptive`](token.md#entropy_adaptive)" in pages["README.md"][start:]


def test_the_index_lists_every_loss_its_aliases_and_its_coupling(pages):
    index = pages["README.md"]
    everything = index[index.index("## All losses") : index.index("## How to call them")]
    coupled = index[index.index("## Coupled over the batch") :]
    for record in RECORDS:
        (row,) = (line for line in everything.splitlines() if line.startswith(f"| [`{record.name}`]"))
        assert prose(record.summary) in row
        assert row.endswith("| coupled |") == record.batch_coupled
        assert (f"[`{record.name}`]" in coupled.rsplit("\n\n", 1)[1]) == record.batch_coupled
        for alias in record.aliases:
            assert f"- `{alias}` is [`{record.name}`]" in index


@pytest.mark.parametrize("name", [record.name for record in RECORDS if "form" in record.hyperparameters])
def test_both_forms_are_written_out_and_drawn(name, sections):
    record = get_record(name)
    default = record.hyperparameters["form"]
    (other,) = set(re.findall(r'"(\w+)"', loss_facts(record).meanings["form"])) - {default}
    formula = sections[name].partition("![")[0]
    assert (default in formula and other in formula) or "in both forms" in formula or f'form="{other}"' in formula
    variant = f"{name}(form='{other}')"
    same = np.allclose(loss_curve(name, points=9).loss, loss_curve(variant, points=9).loss, rtol=1e-9)
    assert same != (variant in BESIDE[name])
    assert same == ("oth forms" in NOTES.get(name, ""))


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_drawn_beside_a_loss_runs_along_its_line_and_differs(name):
    own = loss_curve(name, points=9, span=SPANS.get(name))
    for text in BESIDE[name]:
        beside = loss_curve(text, points=9, span=SPANS.get(name))
        assert beside.x == own.x
        reach = max(own.gradient) - min(own.gradient)
        gap = max(abs(a - b) for a, b in zip(own.gradient, beside.gradient, strict=True))
        assert gap > 0.02 * reach


def test_notes_belong_to_losses():
    assert set(NOTES) | set(BESIDE) | set(SPANS) <= NAMES


def test_the_picture_of_lrml_shows_its_dent():
    curve = loss_curve("lrml", span=SPANS["lrml"])
    uphill = [x for x, slope in zip(curve.x, curve.gradient, strict=True) if slope > 0]
    assert (curve.x[-1] - curve.x[0]) / 8 < uphill[-1] - uphill[0] < (curve.x[-1] - curve.x[0]) / 2
    assert uphill[0] == pytest.approx(-2.4, abs=0.15)
    assert uphill[-1] == pytest.approx(1.4, abs=0.15)


def test_the_index_says_which_losses_take_a_memory_and_which_accumulate_exactly(pages):
    index = pages["README.md"]
    (memory,) = re.findall(r"^\| `memory_size=4096` \| (.*?) \|", index, flags=re.MULTILINE)
    assert set(re.findall(r"\[`(\w+)`\]", memory)) == {record.name for record in RECORDS if record.row_local}
    (exact,) = re.findall(r"^- \*\*Exact\*\*: (.*)$", index, flags=re.MULTILINE)
    token, metric, preference, unpaired = (
        set(re.findall(r"\[`(\w+)`\]", part))
        for part in re.split(r"metric losses|all preference|unpaired losses", exact)
    )
    coupled = {record.name: record.family for record in RECORDS if record.batch_coupled}
    assert token == {name for name, family in coupled.items() if family == "token"}
    assert preference == {name for name, family in coupled.items() if family == "preference"}
    uncoupled = {record.name: record.family for record in RECORDS if not record.batch_coupled}
    assert metric == {name for name, family in uncoupled.items() if family == "metric"}
    assert unpaired == {name for name, family in uncoupled.items() if family == "unpaired"}


def test_a_picture_shows_the_loss_and_what_is_beside_it(tmp_path):
    (tmp_path / "focal.png").write_bytes(picture(get_record("focal")))
    assert (tmp_path / "focal.png").stat().st_size < 30_000
    pixels = imread(tmp_path / "focal.png")[..., :3]
    for hue in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        near = np.abs(pixels - np.array(hue) / 255).max(-1) < 0.06
        assert all(third.sum() > 100 for third in np.array_split(near, 3, axis=1))


def test_the_command_writes_every_file(tmp_path, monkeypatch, capsys, pages):
    monkeypatch.setattr(catalogue, "picture", lambda record: record.name.encode())
    with pytest.raises(SystemExit) as stop:
        cli.main(["losses", "docs", "--out", str(tmp_path / "new")])
    assert stop.value.code == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert written == {name: text.encode() for name, text in pages.items()} | {
        f"{name}.png": name.encode() for name in NAMES
    }
    assert f"{len(written)} files in {tmp_path / 'new'}" in capsys.readouterr().out
    assert COMMAND.split()[:3] == ["lossmith", "losses", "docs"]


def test_a_folder_that_cannot_be_written_and_a_missing_extra_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "picture", lambda record: b"")
    (tmp_path / "file").write_text("")
    with pytest.raises(EvidenceError, match=r"Cannot write `.*README\.md`"):
        write_catalogue(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="`matplotlib` is needed to draw the losses"):
        write_catalogue(tmp_path)


def test_the_readme_names_every_loss_in_lines_that_a_terminal_shows():
    text = losses_markdown()
    assert max(map(len, text.splitlines())) <= 120
    words = re.findall(r"`(\w+)`", text)
    assert sorted(set(words)) == sorted(NAMES | {alias for record in RECORDS for alias in record.aliases})
    assert text.startswith(f"{len(NAMES)} of them; ")
    assert "(alias `gdice`)" in text
    assert len(re.findall(r"^- \*\*\[", text, flags=re.MULTILINE)) == len(PAGES)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a <b>, 2*3 and _this_ ~~no~~", r"a \<b>, 2\*3 and \_this\_ \~\~no\~\~"),
        ("the *only* way", "the *only* way"),
        ("in [0, 1](x)", r"in [0, 1\](x)"),
        ("snake_case stays, so does `a_b*c`", "snake_case stays, so does `a_b*c`"),
        ("$a_i < b$ and\n$c$", "$`a_i < b`$ and $`c`$"),
        ("One.\n\n$$x\n\n  y \\\\$$\n\nTwo.", "One.\n\n```math\nx\ny \\\\\n```\n\nTwo."),
        ("`dpo` and `other`", "[`dpo`](p.md#dpo) and `other`"),
        ("", ""),
    ],
)
def test_prose(text, shown):
    assert prose(text, {"dpo": "p.md#dpo"}) == shown


def test_a_bar_stays_in_its_cell():
    assert table(["a"], [["`x|y` and $`|z|`$"]]).splitlines()[2] == r"| `x\|y` and $`\|z\|`$ |"


def test_a_readme_gets_its_list_between_the_marks(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("# mine\n<!-- losses -->\nold\n<!-- /losses -->\nrest\n", encoding="utf-8")
    update_readme(path)
    assert path.read_text(encoding="utf-8") == f"# mine\n<!-- losses -->\n{losses_markdown()}<!-- /losses -->\nrest\n"
    path.write_text("# mine\n<!-- losses -->\nold\n", encoding="utf-8")
    with pytest.raises(EvidenceError, match=r"must hold the marks <!-- losses --> and <!-- /losses -->"):
        update_readme(path)
    with pytest.raises(EvidenceError, match=r"^Cannot read `.*absent.md`: No such file"):
        update_readme(tmp_path / "absent.md")
