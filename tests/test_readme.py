"""The README's example runs, its list of losses is the registry's, and its links lead somewhere."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) == 10
    scope: dict = {}
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), scope)  # noqa: S102 - our own text
    assert "tensor" in capsys.readouterr().out
    assert scope["embeddings"].grad.abs().sum() > 0
    assert scope["optimizer"].param_groups[0]["lr"] == 1e-3


def test_the_list_of_losses_is_the_registrys():
    from lossmith.report.catalogue import losses_markdown

    assert losses_markdown().strip() in README


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        assert (ROOT / file).exists()
        if anchor:
            assert f"\n### {anchor.replace('-', ' ').capitalize()}\n" in (ROOT / file).read_text(encoding="utf-8")
