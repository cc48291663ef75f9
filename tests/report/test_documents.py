"""The Python of the documentation runs, prints what the text says, and gives the numbers that the text claims."""

import inspect
import math
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import lossmith
from lossmith.errors import LossmithWarning
from lossmith.objectives import VOCABULARY, get_record
from lossmith.report.catalogue_calls import ACCUMULATION, EXAMPLES, SCHEDULES, SETTINGS
from lossmith.report.catalogue_guide import NOTES, PAGES
from lossmith.testing import draw_statistics

DOCS = Path(__file__).resolve().parents[2] / "docs"
OWN_LOSS = (DOCS / "own-loss.md").read_text(encoding="utf-8")
BLOCKS = re.compile(r"```(python|text)\n(.*?)```", flags=re.DOTALL)
MARK = "<next block>"


def run_blocks(text: str) -> dict:
    torch.manual_seed(0)
    scope: dict = {}
    for _, code in BLOCKS.findall(text):
        exec(compile(code, "documentation", "exec"), scope)  # noqa: S102 - our own text
    return scope


@pytest.mark.parametrize("page", ["own-loss.md", "engines.md"])
def test_a_page_runs_as_a_users_script_and_prints_what_it_says(page, tmp_path):
    blocks = BLOCKS.findall((DOCS / page).read_text(encoding="utf-8"))
    script = f"\nprint({MARK!r})\n".join(code for kind, code in blocks if kind == "python")
    (tmp_path / "my_losses.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "my_losses.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    wanted = []
    for kind, text in blocks:
        if kind == "python":
            wanted.append("")
        else:
            wanted[-1] = text
    assert [printed.strip() for printed in done.stdout.split(MARK)] == [text.strip() for text in wanted]


def test_the_vocabulary_is_the_librarys():
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", OWN_LOSS, flags=re.DOTALL | re.MULTILINE))
    assert list(sections) == list(VOCABULARY)
    for family, text in sections.items():
        rows = re.findall(r"^\| `(\w+)` \| (.+?) \| \\\[(.*?)\\\] \| (.*?) ?\|$", text, flags=re.MULTILINE)
        assert [name for name, *_ in rows] == list(VOCABULARY[family])
        record = replace(lossmith.list_losses(family)[0], reads=VOCABULARY[family], proxy_shape=())
        if family == "metric":
            record = replace(record, proxy_shape=("num_classes", "embedding_dim"))
        drawn = draw_statistics(record)
        for name, meaning, shape, _unit in rows:
            assert drawn[name].ndim == len([axis for axis in shape.split(", ") if axis]), name
            assert ("bool" in meaning) == (drawn[name].dtype == torch.bool), name
            assert not meaning.endswith("<= 0") or bool((drawn[name] <= 0).all()), name


def test_the_decorators_keywords_are_all_there():
    part = OWN_LOSS[OWN_LOSS.index("## What the decorator may be told") :]
    keywords = re.findall(r"^\| `(\w+)` \|", part, flags=re.MULTILINE)
    parameters = inspect.signature(lossmith.objective).parameters.values()
    assert set(keywords) == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_links_of_the_page_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", OWN_LOSS, flags=re.DOTALL))
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        headings = re.findall(r"^#+ (.+)$", (DOCS / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_an_example_that_runs(page):
    scope = run_blocks(EXAMPLES[page])
    value = scope["value"]
    assert value.shape == ()
    assert math.isfinite(value.item())
    leaves = [x for x in scope.values() if isinstance(x, torch.Tensor) and x.is_leaf and x.requires_grad]
    assert leaves
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_completion_logps_sums_what_a_loop_sums():
    completion_logps = run_blocks(EXAMPLES["preference"])["completion_logps"]
    logits, ids = torch.randn(3, 6, 11, dtype=torch.bfloat16), torch.randint(11, (3, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    logps, lengths = completion_logps(logits, ids, mask)
    assert lengths.tolist() == [3, 1, 0]
    for row in range(3):
        total = 0.0
        for place in range(1, 6):
            if mask[row, place]:
                scores = [x.item() for x in logits[row, place - 1].float()]
                total += scores[ids[row, place]] - math.log(sum(map(math.exp, scores)))
        assert logps[row].item() == pytest.approx(total, rel=1e-5, abs=1e-6)


def test_the_accumulation_example_is_one_batch():
    scope = run_blocks(ACCUMULATION)
    logits, loss = scope["logits"], scope["loss"]
    whole = logits.detach().clone().requires_grad_()
    loss(whole, scope["labels"]).backward()
    torch.testing.assert_close(logits.grad, whole.grad)


def test_an_inexact_loss_warns_where_the_page_says():
    logits, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 3])
    loss = lossmith.loss("mile")
    with pytest.warns(LossmithWarning, match="several micro-batches are not one batch"):
        first = loss(logits, labels, num_items=8)
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("always")
        assert loss(logits, labels, num_items=8) == first
    assert again == [], "said once"


def test_class_weights_are_those_of_pytorch():
    logits, labels = torch.randn(9, 4), torch.tensor([0, 1, 2, 3, -100, 0, 1, -100, 3])
    class_weights = torch.tensor([0.3, 1.0, 2.5, 0.7])
    got = lossmith.loss("cross_entropy")(logits, labels, weights=class_weights[labels.clamp_min(0)])
    torch.testing.assert_close(got, F.cross_entropy(logits, labels, class_weights))


def test_num_items_by_kind_and_scope():
    text = "0.5*cross_entropy + 0.3*focal[answer] + 0.2*dice(region='sequence')"
    loss = lossmith.loss(text)
    assert "dice(region='sequence')" in str(loss)
    logits, labels, answer = torch.randn(4, 5, 7), torch.randint(7, (4, 5)), torch.rand(4, 5) < 0.6
    counts = {"token": 20, "token[answer]": int(answer.sum()), "region": 4}
    whole = loss(logits, labels, scopes={"answer": answer})
    halves = [
        loss(logits[rows], labels[rows], scopes={"answer": answer[rows]}, num_items=counts)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(torch.stack(halves).sum(), whole)


def test_settings_of_the_string_are_the_keywords():
    for name, _, _ in SETTINGS:
        if "=" in name:
            key, value = name.strip("`").split("=")
            owners = {"region": "dice", "gather": "supcon", "memory_size": "supcon", "miner": "supcon"}
            owner = {**owners, "running_kl": "kto"}.get(key, "bco_pair")
            sizes = {"embedding_dim": 4} if key == "memory_size" else {}
            loss = lossmith.loss(f"{owner}({key}={value})", **sizes)
            assert str(loss) == f"{owner}({key}={value})"
            assert str(lossmith.loss(owner, **{key: eval(value)}, **sizes)) == str(loss)  # noqa: S307 - our own text


def test_a_memory_is_filled_in_training_and_read_always():
    loss = lossmith.loss("supcon(memory_size=6)", embedding_dim=3)
    rows, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    loss.eval()
    empty = loss(rows, labels)
    torch.testing.assert_close(loss(rows, labels), empty)
    loss.train()
    loss(rows, labels)
    loss.eval()
    filled = loss(rows, labels)
    assert not torch.isclose(filled, empty)
    torch.testing.assert_close(loss(rows, labels), filled)


@pytest.mark.parametrize(
    ("schedule", "progress", "share"),
    [
        ("@ 0.3", 0.3, 0.0),
        ("@ 0.3", 0.65, 0.5),
        ("@ 0.3", 1.0, 1.0),
        ("@ 0.3:0.5", 0.5, 1.0),
        ("@ 0.3:0.3", 0.29, 0.0),
        ("@ 0.3:0.3", 0.3, 1.0),
        ("@ 0.2:0.4 -> poly1 @ 0.6", 0.5, 1.0),
        ("@ 0.2:0.4 -> poly1 @ 0.6", 0.8, 0.5),
    ],
)
def test_schedules_are_what_the_table_says(schedule, progress, share):
    assert f"`A -> B {schedule.replace('poly1', 'C')}`" in [text for text, _ in SCHEDULES]
    loss = lossmith.loss(f"cross_entropy -> focal {schedule}")
    loss.set_progress(progress)
    logits, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 3])
    first, second, last = (lossmith.loss(name)(logits, labels) for name in ("cross_entropy", "focal", "poly1"))
    expected = share * second + (1 - share) * (last if progress > 0.6 and "poly1" in schedule else first)
    torch.testing.assert_close(loss(logits, labels), expected)


def test_the_weights_in_the_note_on_mile():
    one, other = re.findall(r"weight (\d\.\d\d)|second (\d\.\d\d)", NOTES["mile"])
    logps = torch.tensor([math.log(0.5), -1.0])
    weights = get_record("mile").function(logps, torch.tensor([math.log(2), 0.0])) / -logps
    assert weights.tolist() == pytest.approx([float(one[0]), float(other[1])], abs=0.005)


def test_lengths_of_zero_and_valid_take_a_pair_out():
    pairs = torch.randn(4, 3)
    lengths = torch.tensor([3, 0, 2])
    kept = lossmith.loss("dpo")(*pairs[:, [0, 2]])
    torch.testing.assert_close(lossmith.loss("dpo")(*pairs, lengths, lengths + 1), kept)
    torch.testing.assert_close(lossmith.loss("dpo")(*pairs, valid=lengths > 0), kept)


def test_the_table_of_miners_and_memories_is_the_catalogues():
    text = (DOCS / "few-shot.md").read_text(encoding="utf-8")
    table = text.partition("| metric losses | miner | memory |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.+?) \| (.+?) \| (.+?) \|$", table, flags=re.MULTILINE)
    found = {
        name: (re.findall(r"'(\w+)'", miners), memory == "yes")
        for names, miners, memory in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    records = lossmith.list_losses("metric")
    assert set(found) == {record.name for record in records}
    for record in records:
        miners, memory = found[record.name]
        assert memory == ("memory_size" in record.settings), record
        for miner in ("hard", "semi_hard", "multi_similarity"):
            sizes = {"num_classes": 3, "embedding_dim": 4} if record.required else {}
            try:
                lossmith.loss(record.name, miner=miner, **sizes)
            except lossmith.ObjectiveInputError:
                assert miner not in miners, (record, miner)
            else:
                assert miner in miners, (record, miner)


def test_a_loop_over_losses_gives_each_the_sizes_that_it_needs():
    built = run_blocks((DOCS / "few-shot.md").read_text(encoding="utf-8"))
    assert "soft_triple" in str(built["loss"])
    assert tuple(built["loss"].terms[1].proxies.shape)[-1] == built["sizes"]["embedding_dim"]
