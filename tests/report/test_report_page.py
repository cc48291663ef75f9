import json
import math
import re
from dataclasses import replace

import pytest
from report_page import parse_page
from report_studies import DEMO_MEANS, HOSTILE, fake_record, fake_study, hostile_study

from lossmith.errors import EvidenceError
from lossmith.explain.text import one_line
from lossmith.report.html import answer, script_json
from lossmith.report.provenance import flat_settings, provenance
from lossmith.report.write import write_report

FILES = {
    "report.html", "table.csv", "table.md", "table.tex",
    "forest.png", "seeds.png", "learning_curves.png", "confusion.png",
}  # fmt: skip
SHOWN_HOSTILE = one_line(HOSTILE)


def render(tmp_path, study):
    return write_report(tmp_path / "report", **vars(study)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile_text(tmp_path_factory):
    return render(tmp_path_factory.mktemp("hostile"), hostile_study())


@pytest.fixture(scope="module")
def demo_text(tmp_path_factory):
    return render(tmp_path_factory.mktemp("demo"), fake_study())


def inline_json(text):
    return json.loads(re.search(r'<script type="application/json" id="lossmith-data">(.*?)</script>', text, re.S)[1])


def test_all_files_are_written_whole_and_equal_twice(tmp_path):
    paths = [write_report(tmp_path / name, **vars(fake_study(seeds=2))) for name in ("a", "b")]
    assert [path.name for path in paths] == ["report.html"] * 2
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_order_of_records_and_runs_of_other_studies_change_nothing(tmp_path):
    study = fake_study(seeds=2)
    first = render(tmp_path / "a", study)
    study.records = [fake_record("other", 0, 0.5), fake_record("focal", 7, 0.5), *reversed(study.records)]
    assert render(tmp_path / "b", study) == first


def test_the_page_has_two_scripts_and_no_element_or_handler_from_foreign_text(hostile_text):
    page = parse_page(hostile_text)
    assert [script.get("type") for script in page.all("script")] == ["application/json", None]
    assert not page.all("img")
    assert not page.all("b")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    # Balanced: parse_page fails on a stray closing tag, and this is all of the page.
    assert page.elements[-1][0] == "script"


def test_foreign_text_is_shown_as_it_is(hostile_text):
    page = parse_page(hostile_text)
    for tag in ("h1", "title", "code", "li", "pre", "dt", "dd"):
        assert SHOWN_HOSTILE in page.text(tag), tag
    assert all(character not in hostile_text for character in "\u2028\u2029")


def test_the_inline_json_is_hostile_text_unharmed(hostile_text):
    data = inline_json(hostile_text)
    assert data["title"] == HOSTILE
    assert data["commands"] == [HOSTILE]
    assert data["settings"] == {HOSTILE: {"nested": [HOSTILE, None]}}
    assert [row["loss"] for row in data["summary"]["rows"]] == [HOSTILE, f"=cmd|{HOSTILE}", f"_{HOSTILE}"]
    assert data["runs"][-1]["error"] == HOSTILE
    assert data["runs"][-1]["curves"]["train_nll"][-1] == [25, None]


def test_script_json_has_no_character_that_html_or_javascript_reads():
    text = script_json({"</script>": ["<!--", "&amp;", "\u2028\u2029", math.inf, -math.inf, (math.nan, 1.5)]})
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == {"</script>": ["<!--", "&amp;", "\u2028\u2029", None, None, [None, 1.5]]}


@pytest.mark.parametrize("name", ["demo_text", "hostile_text"])
def test_nothing_on_the_page_loads_anything(name, request):
    text = request.getfixturevalue(name)
    for tag, attributes in parse_page(text).elements:
        for key in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            target = attributes.get(key, "") if tag not in {"td", "th"} else ""
            assert target.startswith(("#", "data:")) or not target, (tag, target)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text


def test_the_policy_forbids_every_load_and_names_the_script(demo_text):
    policy = parse_page(demo_text).all("meta")[1]["content"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]


def test_ids_are_unique_and_labels_point_to_them(demo_text):
    elements = parse_page(demo_text).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = {label for _, a in elements for label in a.get("aria-labelledby", "").split()}
    assert labels <= set(ids)
    assert {f"{name}-title" for name in ("forest", "seeds", "learning_curves", "confusion")} <= labels


def test_the_answer_comes_first_and_every_loss_has_its_sentence(demo_text):
    study = fake_study()
    text = parse_page(demo_text).text()
    places = [text.index(row.sentence) for row in study.summary.rows]
    assert max(places) < text.index("Comparison")
    assert answer(study.summary) == f"0.4*cross_entropy + 0.6*supcon {study.summary.rows[3].sentence}."
    assert answer(study.summary) in text


def test_the_answer_says_when_there_is_none():
    nothing = fake_study({"cross_entropy": 0.5, "focal": 0.5}).summary
    assert answer(nothing) == "No loss was shown to beat cross_entropy here."
    failed = fake_study(seeds=1, failed={(loss, 0) for loss in DEMO_MEANS}).summary
    assert "nothing can be said yet" in answer(failed)
    assert answer(replace(nothing, planned=12)).startswith("Not complete: 10 of 12 runs are there.")


def test_with_lower_is_better_the_best_is_the_lowest():
    summary = fake_study(metric="nll").summary
    assert "supcon beats cross_entropy" in answer(summary)


def test_how_sure_names_every_test_and_its_limit(demo_text):
    text = parse_page(demo_text).text()
    for words in (
        "paired t", "Holm's correction", "smallest p that it can reach is 0.0625, so it can never decide here",
        "bootstrap range (5 blocks: not a 95% interval)", "noise floor",
    ):  # fmt: skip
        assert words in text
    ten = fake_study({"cross_entropy": 0.5, "focal": 0.6}, seeds=10)
    from lossmith.report.html import _sign_flip_sentence

    assert "0.001953, so it could decide here" in _sign_flip_sentence(ten.summary)


def test_failed_runs_are_listed_with_their_errors(tmp_path):
    text = parse_page(render(tmp_path, fake_study(seeds=2, failed={("focal", 1)}))).text()
    assert "focal, seed 1: The training loss is not finite at step 25; the last losses were [0.61, 3.2, nan]." in text
    assert "1 failed" in text


def test_all_failed_and_one_seed_still_give_a_page(tmp_path):
    failed = render(tmp_path / "a", fake_study(failed={(loss, seed) for loss in DEMO_MEANS for seed in range(5)}))
    assert "No run finished" in failed
    assert len(parse_page(failed).all("svg")) == 4
    one = render(tmp_path / "b", fake_study(seeds=1))
    assert "1 paired seed;" in parse_page(one).text()
    assert "nan" not in parse_page(one).text("td")


def test_provenance_warns_of_mixed_and_dirty_runs_only():
    same = [fake_record("focal", seed, 0.5) for seed in range(3)]
    assert provenance(same).warnings == ()
    assert ("torch", "2.13.0") in provenance(same).facts
    mixed = [
        *same,
        fake_record("focal", 3, 0.5, versions={"python": "3.12.0"}, commit="ffff+dirty", hardware={"device": "cuda"}),
    ]
    versions, hardware, commit, dirty = provenance(mixed).warnings
    assert "torch (2.13.0, not recorded)" in versions
    assert "python (3.11.7, 3.12.0)" in versions
    assert "device (cpu, cuda)" in hardware
    assert "commit (0123456789abcdef, ffff+dirty)" in commit
    assert dirty == "1 of 4 runs come from a source tree with uncommitted changes."


def test_settings_are_flat_and_empty_groups_stay_visible():
    assert flat_settings({"a": {"b": {"c": 1.5}}, "d": {}, "e": None, "f": True}) == [
        ("a.b.c", "1.5"), ("d", "{}"), ("e", "null"), ("f", "true"),
    ]  # fmt: skip


def test_an_unwritable_folder_leaves_no_temporary_file(tmp_path):
    folder = tmp_path / "report"
    (folder / "table.md").mkdir(parents=True)
    with pytest.raises(EvidenceError, match="Cannot write results to"):
        write_report(folder, **vars(fake_study(seeds=1)))
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]
    assert not (folder / "report.html").exists()
