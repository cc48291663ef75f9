"""The report of a study of language models that write their answers: steps, outcomes, samples and its words."""

import csv
import io
import json
import re

import pytest
from completion_studies import (
    BROKEN,
    MATH_MEANS,
    choice_study,
    completion_study,
    fake_completion,
    hostile_completions,
    sample,
)
from report_page import parse_page
from report_studies import HOSTILE, fake_study

from lossmith.errors import EvidenceError
from lossmith.evidence import summarize
from lossmith.explain.text import one_line
from lossmith.report.confusion import confusion_figure
from lossmith.report.figures import curves_figure
from lossmith.report.samples import MAX_CHARACTERS, MAX_LINES, sample_problems, sample_seed, shown_lines
from lossmith.report.steps import step_rows, steps_table
from lossmith.report.tables import to_markdown
from lossmith.report.write import write_report

LOVASZ = "0.6*cross_entropy + 0.4*lovasz_softmax"
COMMON = {"report.html", "table.csv", "table.md", "table.tex", "steps.csv", "steps.md", "forest.png", "seeds.png",
          "learning_curves.png", "outcomes.png"}  # fmt: skip


def render(tmp_path, study):
    return write_report(tmp_path / "report", **vars(study)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def math_text(tmp_path_factory):
    return render(tmp_path_factory.mktemp("math"), completion_study())


@pytest.fixture(scope="module")
def hostile_text(tmp_path_factory):
    return render(tmp_path_factory.mktemp("hostile"), hostile_completions())


def inline_json(text):
    return json.loads(re.search(r'<script type="application/json" id="lossmith-data">(.*?)</script>', text, re.S)[1])


def test_math_and_choice_have_their_files_and_equal_inputs_give_equal_ones(tmp_path):
    for name, make, more in (("math", completion_study, set()), ("choice", choice_study, {"confusion.png"})):
        means = {"cross_entropy": 0.3, LOVASZ: 0.5}
        folders = [write_report(tmp_path / name / side, **vars(make(means=means, seeds=2))).parent for side in "ab"]
        assert {path.name for path in folders[0].iterdir()} == COMMON | more
        for file in folders[0].iterdir():
            assert file.read_bytes() == (folders[1] / file.name).read_bytes(), file.name


def test_samples_are_of_the_first_seed_that_most_losses_share():
    runs = [fake_completion(loss, seed, 0.3, problems=12) for loss in ("ce", "focal") for seed in (0, 1, 2)]
    del runs[3]  # focal, seed 0
    assert sample_seed(runs) == 1
    problems = sample_problems(runs, ["focal", "ce"])
    assert [problem.title[:16] for problem in problems] == ["Test problem 1: ", "Test problem 4: ", "Test problem 12:"]
    assert [written.loss for written in problems[0].written] == ["focal", "ce"]
    fourth = problems[1]
    assert fourth.prompt == ("Question: Ann has 5 bags of 24 nuts and eats 7. How many are left?", "Answer: ")
    assert fourth.target == ("<<5*24=120>> <<120-7=113>> #### 113",)
    assert fourth.written[1].lines == ("<<5*24=120>> #### 60",)
    assert fourth.written[1].correct == (runs[1].outcomes[3] in ("correct", "correct_other_steps"))
    assert sample_seed([]) is None
    assert sample_problems([], ["ce"]) == ()


def test_a_sample_without_an_output_is_one_sentence():
    run = fake_completion("ce", 0, 0.3, problems=5, samples=(0, 7))
    with pytest.raises(EvidenceError, match=r"'ce', seed 0, must hold an output .* holds 5 outputs, .* \[7\]"):
        sample_problems([run], ["ce"])


def test_shown_texts_are_cut_with_a_word_about_it():
    long = shown_lines("x" * (MAX_CHARACTERS + 1))
    assert long == ("x" * MAX_CHARACTERS, f"… ({MAX_CHARACTERS + 1} characters in all)")
    assert shown_lines("x" * MAX_CHARACTERS) == ("x" * MAX_CHARACTERS,)
    tall = shown_lines("\n".join("abc" for _ in range(MAX_LINES + 1)))
    assert (len(tall), tall[-2:]) == (MAX_LINES + 1, ("abc", f"… ({4 * MAX_LINES + 3} characters in all)"))
    assert shown_lines("\n \x00\n") == ()


def test_the_page_shows_each_loss_beside_the_others_for_each_problem(math_text):
    page = parse_page(math_text)
    samples = [a for a in page.all("details") if a.get("class") == "sample"]
    assert len(samples) == 3
    assert ["open" in attributes for attributes in samples] == [True, False, False]
    pre = page.text("pre")
    for index in (0, 3, 11):
        assert sample(index)["prompt"].strip() in pre
        assert sample(index)["target"] in pre
        assert pre.count(f"<<{index + 2}*24={(index + 2) * 24}>> #### {index * 20}\n") == len(MATH_MEANS)


def test_what_models_wrote_is_text_and_steers_nothing(hostile_text):
    page = parse_page(hostile_text)
    assert [script.get("type") for script in page.all("script")] == ["application/json", None]
    assert not page.all("img")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    first, second = BROKEN.splitlines()
    assert page.text("pre").count(f"{first}\n{one_line(second)}") == 5 + 2
    assert "{{ 7*7 }}" in page.text("pre")
    assert "nothing was written" in page.text("span")
    assert not set("\x00\x1b\u202e\u202c\u2028\u2029") & set(hostile_text)
    assert one_line(HOSTILE.replace("_", " ")).strip() in " ".join(page.text("span").split("✗"))


def test_hostile_names_keep_the_tables_of_steps_whole(tmp_path):
    folder = write_report(tmp_path, **vars(hostile_completions())).parent
    rows = list(csv.reader(io.StringIO((folder / "steps.csv").read_text())))
    assert {len(row) for row in rows} == {10}
    assert {row[1][:5] for row in rows[1:]} == {"_<scr", "'=cmd"}
    for line in (folder / "steps.md").read_text().splitlines():
        assert len(line.replace("\\\\", "").replace("\\|", "").split("|")) == 8
        assert "<" not in line.replace("\\<", "")
    study = completion_study({"*a*": 0.3, "|b|": 0.4}, seeds=2)
    table = to_markdown(steps_table(step_rows(study.summary, study.records)))
    assert r"\*a\*" in table
    assert r"\|b\|" in table


def test_nothing_kept_per_example_is_in_the_page_data(math_text):
    runs = inline_json(math_text)["runs"]
    assert not {"outputs", "scores", "outcomes", "predictions", "labels", "config"} & set(runs[0])
    assert runs[0]["metrics"]["released_iou"] > 0
    row = inline_json(math_text)["summary"]["rows"][-1]
    assert (row["by_example"]["examples"], len(row["by_example"]["per_seed"])) == (200, 3)
    classes = fake_study(seeds=2)
    assert all(row.by_example for row in classes.summary.rows[1:])


def test_a_classification_keeps_its_page(tmp_path):
    text = render(tmp_path, fake_study(seeds=2))
    assert "by_example" not in text
    for words in ("steps.csv", "test by example", "adapters", "test problems", "McNemar", "completions", "details"):
        assert words not in text, words
    assert "initial head" in text


def test_the_words_are_of_rows_problems_and_adapters(math_text):
    text = parse_page(math_text).text()
    assert "6725 training rows per seed, 200 test problems." in text
    assert "it fixes the initial adapters, the training rows drawn, their order and dropout" in text
    assert "where all training rows are used, seeds do not redraw" in text
    for words in ("test texts", "classes,", "initial head", "shots", "Confusion"):
        assert words not in text, words


def test_the_test_by_example_stands_beside_the_verdict(math_text):
    study = completion_study()
    text = " ".join(parse_page(math_text).text().split())
    assert "generalises to other problems only, not to other seeds" in text
    assert "stands beside the verdict and does not decide" in text
    found = study.summary.rows[-1].by_example
    one = found.per_seed[1]
    assert f"{found.gained} / {found.lost}" in parse_page(math_text).text("td")
    assert f"seed 1: {one.gained} / {one.lost}, p " in text
    assert "<0.001" in parse_page(math_text).text("td")


def test_a_loss_without_scores_has_dashes_in_the_columns_by_example(tmp_path):
    study = completion_study({"cross_entropy": 0.3, "focal": 0.4, "dice": 0.4}, seeds=2)
    for record in study.records[-2:]:
        record.scores.clear()
    losses = [row.loss for row in study.summary.rows]
    study.summary = summarize(
        study.records, losses=losses, baseline="cross_entropy", metric="exact_match", seeds=range(2)
    )
    assert study.summary.rows[2].by_example is None
    rows = re.findall(r"<tr>.*</tr>", render(tmp_path, study).partition("All tests side by side, diff")[2])
    focal, dice = (next(row for row in rows if f"<code>{loss}</code>" in row) for loss in ("focal", "dice"))
    dashes = '<td class="number">–</td><td class="number">–</td><td class="bootstrap">–'
    assert (dashes in focal, dashes in dice) == (False, True)


def test_notices_are_read_before_the_numbers(tmp_path):
    study = completion_study({"cross_entropy": 0.3, "focal": 0.4}, seeds=2)
    notice = f"cross_entropy, seed 0: no answer could be read. {HOSTILE}"
    text = parse_page(write_report(tmp_path, **vars(study), notices=[notice]).read_text()).text()
    assert text.index(one_line(notice)) < text.index("Comparison")


def test_learning_curves_show_what_there_is_in_percent_and_nats():
    study = completion_study(seeds=2)
    figure = curves_figure(study.records, list(MATH_MEANS), baseline="cross_entropy")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "training NLL (nats)", "validation NLL (nats)", "validation exact match (%)",
    ]  # fmt: skip
    last = [run.curves["validation_exact_match"][-1][1] for run in study.records[:2]]
    assert figure.axes[2].lines[2].get_ydata()[-1] == pytest.approx(100 * sum(last) / 2)
    nll = [run.curves["validation_nll"][-1][1] for run in study.records[:2]]
    assert figure.axes[1].lines[2].get_ydata()[-1] == pytest.approx(sum(nll) / 2)


def test_choices_have_a_column_but_no_row_for_answers_that_name_no_option(tmp_path):
    study = choice_study(means={"cross_entropy": 0.3, "focal": 0.4}, seeds=2)
    axes = confusion_figure(study.records, ["cross_entropy", "focal"]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["A", "B", "C", "D", "unparsed"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A", "B", "C", "D"]
    assert sum(int(text.get_text().split("\n")[1]) for text in axes.texts) == 400
    study.records[0].labels[0] = 4  # a class that is called so keeps its row
    assert len(confusion_figure(study.records, ["cross_entropy", "focal"]).axes[0].get_yticklabels()) == 5
    text = parse_page(render(tmp_path, choice_study(means={"cross_entropy": 0.3, "focal": 0.4}, seeds=2)))
    assert "Answers" in text.text("h2")
    assert "reasoning" not in text.text()


def test_all_failed_one_seed_and_one_loss_still_give_a_page(tmp_path):
    failed = completion_study(failed={(loss, seed) for loss in MATH_MEANS for seed in range(3)})
    text = render(tmp_path / "failed", failed)
    assert "No run finished, so there is no answer to count." in text
    assert "initial adapters" in text
    for name, study in (
        ("one", completion_study(seeds=1)),
        ("alone", completion_study({"cross_entropy": 0.4}, seeds=2)),
        ("half", completion_study(seeds=2, failed={("cross_entropy", 0), (LOVASZ, 1)})),
    ):
        page = parse_page(render(tmp_path / name, study))
        assert "nan" not in page.text("td").lower()
        assert page.all("svg")
