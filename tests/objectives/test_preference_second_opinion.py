"""TRL's own loss code on the same log-probabilities: its trainers' methods, run on a stub with a canned model output.

Nothing is trained: `DPOTrainer._compute_loss` and its like are called unbound, with a "model" that returns given
log-probabilities per token. What comes back is TRL's mean loss; its gradients tell the items apart.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lossmith.objectives import get_record

trl = pytest.importorskip("trl", minversion="1.16")

PAIRS, PROMPT, WIDTH = 6, 2, 11


class Output(SimpleNamespace):
    """What TRL reads from a model: log-probabilities per token, the rest only for its logs."""

    def __init__(self, token_logps: Tensor):
        zeros = torch.zeros_like(token_logps.detach())
        super().__init__(log_probs=token_logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def stub(**settings: Any) -> SimpleNamespace:
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    return SimpleNamespace(
        accelerator=accelerator,
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        **settings,
    )


def completions(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities per token (0 outside the completion), lengths, and TRL's completion mask."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, WIDTH - PROMPT + 1, (count,), generator=generator)
    places = torch.arange(WIDTH)
    mask = (places >= PROMPT) & (places < PROMPT + lengths[:, None])
    token_logps = -4 * torch.rand(count, WIDTH - 1, generator=generator, dtype=torch.float64) * mask[:, 1:]
    return token_logps.requires_grad_(), lengths.double(), mask.long()


def reference_of(token_logps: Tensor, spread: float = 6.0) -> Tensor:
    generator = torch.Generator().manual_seed(99)
    noise = torch.randn(len(token_logps), generator=generator, dtype=torch.float64)
    return token_logps.detach().sum(-1) + spread * noise


DPO_LOSSES: list[tuple[str, str, dict[str, Any]]] = [
    ("dpo", "sigmoid", {}),
    ("hinge", "hinge", {}),
    ("ipo", "ipo", {"average": True}),
    ("exo_pair", "exo_pair", {"label_smoothing": 0.13}),
    ("nca_pair", "nca_pair", {}),
    ("robust_dpo", "robust", {"label_smoothing": 0.13}),
    ("bco_pair", "bco_pair", {}),
    ("sppo_hard", "sppo_hard", {}),
    ("aot", "aot", {"label_smoothing": 0.13}),
    ("aot_unpaired", "aot_unpaired", {"label_smoothing": 0.13}),
    ("apo_zero", "apo_zero", {}),
    ("apo_down", "apo_down", {}),
    ("dpo_length_normalized", "sigmoid_norm", {}),
]


@pytest.mark.parametrize(("name", "loss_type", "settings"), DPO_LOSSES)
def test_dpo_trainer_agrees(name: str, loss_type: str, settings: dict[str, Any]) -> None:
    from trl.trainer.dpo_trainer import DPOTrainer

    token_logps, lengths, mask = completions(2 * PAIRS)
    ref_chosen, ref_rejected = reference_of(token_logps).chunk(2)
    trainer = stub(
        beta=0.23,
        label_smoothing=settings.get("label_smoothing", 0.0),
        loss_types=[loss_type],
        loss_weights=[1.0],
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
    )
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    theirs = DPOTrainer._compute_loss(trainer, lambda **_: Output(token_logps), inputs, False)

    chosen, rejected = token_logps.sum(-1).chunk(2)
    chosen_lengths, rejected_lengths = lengths.chunk(2)
    statistics = {
        "chosen_logps": chosen,
        "rejected_logps": rejected,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
        "chosen_lengths": chosen_lengths,
        "rejected_lengths": rejected_lengths,
        "reward_shift": torch.tensor(5.0, dtype=torch.float64),
    }
    record = get_record(name)
    ours = record.function(**{key: statistics[key] for key in record.reads}, beta=0.23, **settings).mean()
    # TRL holds the label noise of exo_pair in float32.
    agree(ours, theirs, token_logps, close=1e-6 if name == "exo_pair" else 1e-12)


@pytest.mark.parametrize("kl_side", ["positive", "negative"])
def test_kto_trainer_agrees(kl_side: str) -> None:
    from trl.trainer.kto_trainer import KTOTrainer

    token_logps, _, mask = completions(2 * PAIRS, seed=1)
    ref_logps, desirable = reference_of(token_logps), torch.arange(2 * PAIRS) % 3 > 0
    log_ratios = torch.linspace(-2, 5, 2 * PAIRS, dtype=torch.float64) * (1 if kl_side == "positive" else -1)
    trainer = stub(
        beta=0.23,
        loss_type="kto",
        calculate_KL=True,
        desirable_weight=0.7,
        undesirable_weight=1.6,
        _compute_kl_logps=lambda *_: log_ratios,
    )
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": desirable,
        "ref_logps": ref_logps,
        "ref_KL_logps": torch.zeros_like(log_ratios),
    }
    theirs = KTOTrainer._compute_loss(trainer, lambda **_: Output(token_logps), inputs, False)
    kto = get_record("kto").function
    ours = kto(
        token_logps.sum(-1),
        ref_logps,
        desirable,
        log_ratios.mean(),
        beta=0.23,
        desirable_weight=0.7,
        undesirable_weight=1.6,
    )
    agree(ours.mean(), theirs, token_logps)


def test_cpo_trainer_agrees() -> None:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    token_logps, lengths, _ = completions(2 * PAIRS, seed=2)
    chosen, rejected = token_logps.sum(-1).chunk(2)
    chosen_lengths, rejected_lengths = lengths.chunk(2)
    trainer = stub(alpha=0.0, beta=0.9, label_smoothing=0.0, simpo_gamma=0.4, loss_type="sigmoid")
    theirs = CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].mean()
    cpo, simpo = get_record("cpo").function, get_record("simpo").function
    agree(cpo(chosen, rejected, chosen_lengths, beta=0.9, nll_coefficient=0.0).mean(), theirs, token_logps)
    trainer.loss_type = "simpo"
    theirs = CPOTrainer.cpo_loss(trainer, chosen / chosen_lengths, rejected / rejected_lengths)[0].mean()
    agree(simpo(chosen, rejected, chosen_lengths, rejected_lengths, beta=0.9, gamma=0.4).mean(), theirs, token_logps)


def test_orpo_trainer_agrees() -> None:
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    token_logps, lengths, _ = completions(2 * PAIRS, seed=3)
    means = token_logps.sum(-1) / lengths
    odds_term = ORPOTrainer.odds_ratio_loss(stub(beta=0.7), *means.chunk(2))[0]
    theirs = (-means[:PAIRS] - odds_term).mean()
    orpo = get_record("orpo").function
    ours = orpo(*token_logps.sum(-1).chunk(2), *lengths.chunk(2), coefficient=0.7).mean()
    # TRL computes the odds in float32.
    agree(ours, theirs, token_logps, close=1e-5)


def agree(ours: Tensor, theirs: Tensor, token_logps: Tensor, close: float = 1e-12) -> None:
    """The same mean loss and the same gradient in every token of every completion."""
    assert_close(ours, theirs, rtol=close, atol=0)
    mine = torch.autograd.grad(ours, token_logps, retain_graph=True)[0]
    other = torch.autograd.grad(theirs, token_logps, retain_graph=True)[0]
    assert other.abs().max() > 1e-4
    assert_close(mine, other, rtol=close, atol=close * float(other.abs().max()))
