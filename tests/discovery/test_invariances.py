"""What holds by construction of the modules: ignored positions, the shape of a batch, and the names of classes."""

import pytest
import torch

import lossmith
from lossmith.discovery import as_objective, compile_source
from lossmith.objectives import recorded

TOKEN = [
    "def f(token_logps): return -(1 - token_logps.exp()) ** 2 * token_logps",
    "def f(token_logps): return -token_logps * (1 + token_logps.exp().mean())",
    "def f(token_logps, entropy):\n    w = (1 + entropy).detach()\n    return -w * token_logps / w.mean()",
    "def f(token_logps): return F.softplus(-token_logps - std_batch(token_logps))",
]
METRIC = [
    "def f(similarities, same, different):\n"
    "    return F.softplus(mean_masked(similarities, different) - mean_masked(similarities, same))",
    "def f(similarities, same, different):\n"
    "    gap = mean_masked(similarities, different) - mean_masked(similarities, same)\n"
    "    return torch.relu(gap - gap.mean() + 0.2)",
    "def f(distances, different): return mean_masked(torch.relu(1 - distances) ** 2, different & (distances > 0.1))",
]  # fmt: skip


def value_and_gradient(source: str, family: str, rows: torch.Tensor, labels: torch.Tensor):
    record = as_objective(compile_source(source, family), f"invariance_{family}")
    leaf = rows.clone().requires_grad_()
    with recorded(record):
        value = lossmith.loss(record.name)(leaf, labels)
    value.backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize("source", TOKEN)
def test_what_is_ignored_changes_nothing(source):
    """Padding at the end and between, in every batch statistic too, whatever its logits are."""
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(11, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 7, (11,), generator=generator)
    value, gradient = value_and_gradient(source, "token", logits, labels)
    kept = torch.tensor([0, 1, 2, 4, 5, 6, 7, 10, 11, 12, 15])
    padded = 300 * torch.randn(16, 7, generator=generator, dtype=torch.float64)
    theirs = torch.full((16,), -100)
    padded[kept], theirs[kept] = logits, labels
    for shape in ((16,), (2, 8)):
        again, slopes = value_and_gradient(source, "token", padded.view(*shape, 7), theirs.view(shape))
        torch.testing.assert_close(again, value, rtol=1e-12, atol=1e-12)
        slopes = slopes.view(16, 7)
        torch.testing.assert_close(slopes[kept], gradient, rtol=1e-12, atol=1e-12)
        assert not slopes[theirs == -100].any()


@pytest.mark.parametrize("source", METRIC)
def test_names_of_classes_say_nothing(source):
    generator = torch.Generator().manual_seed(6)
    rows = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    labels = torch.arange(12) % 4
    value, gradient = value_and_gradient(source, "metric", rows, labels)
    for names in ([3, 0, 1, 2], [907, 5, 41, 6]):
        again, slopes = value_and_gradient(source, "metric", rows, torch.tensor(names)[labels])
        torch.testing.assert_close(again, value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slopes, gradient, rtol=1e-12, atol=1e-12)
    other, _ = value_and_gradient(source, "metric", rows, torch.arange(12) // 3)
    assert other != value


def test_a_statistic_over_all_positions_would_be_seen():
    """The test above fails for what pads as a position: here with labels that count."""
    source = TOKEN[1]
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    labels = torch.tensor([1, 2, 3, 4, 5])
    more = torch.cat([logits, logits[:1]]), torch.cat([labels, labels[1:2]])
    assert value_and_gradient(source, "token", logits, labels)[0] != value_and_gradient(source, "token", *more)[0]
