r"""How far a policy has moved from its reference, along answers that it sampled.

Three numbers, which differ in direction, unit and noise, so that none is called "the KL" alone. `kl` decides: it is the
divergence that the objectives bound, KL(policy || reference), of whole answers, and its estimator sums over the
vocabulary what the plain Monte Carlo estimator draws by chance, so that it is never negative and much less noisy.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

from lossmith.errors import DataError, ModelError
from lossmith.integrations.causal_lm.divergence import RowDivergence


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A policy against its reference over a set of sampled answers, in nats."""

    kl: float
    """`sequence_kl`: per answer, exact over the vocabulary along the samples; decides."""
    kl_sampled: float
    """`sampled_kl`: the same quantity by the plain Monte Carlo estimator; may be negative."""
    kl_per_token: float
    """`kl_per_token`: per token of the answers."""
    kl_released: float
    """`released_kl`: KL(reference || policy) per token with the prompt, as the released code has it."""
    per_answer: tuple[float, ...]
    """The terms whose mean `kl` is, one per answer."""


def divergence(
    rows: Sequence[RowDivergence], tokens: Sequence[Sequence[int]], *, left_out: Set[int] = frozenset()
) -> Divergence:
    """All of them for one set of answers.

    Args:
        rows: From `row_divergences`, at least one.
        tokens: Token ids of prompt and answer of each row.
        left_out: For `kl_released`: tokens that it does not count, end of sequence and padding.

    Raises:
        DataError: If there is no row, or not one list of tokens for each.
        ModelError: If a number is not finite, as after a training that diverged.
    """
    if not rows or len(rows) != len(tokens):
        raise DataError(f"There must be one list of tokens per row and at least one, got {len(rows)}, {len(tokens)}.")
    found = Divergence(
        kl=sequence_kl(rows),
        kl_sampled=sampled_kl(rows),
        kl_per_token=kl_per_token(rows),
        kl_released=released_kl(rows, tokens, left_out=left_out),
        per_answer=tuple(sum(row.kl) for row in rows),
    )
    if not all(math.isfinite(value) for value in (found.kl, found.kl_sampled, found.kl_released)):
        raise ModelError("The policy gives log-probabilities that are not finite: its training has diverged.")
    return found


def sequence_kl(rows: Sequence[RowDivergence]) -> float:
    r"""KL(policy || reference) per answer, in nats, >= 0: the estimator that decides.

    With answers $y^{(i)} \sim \pi$,

    $$\frac{1}{N} \sum_i \sum_t \mathrm{KL}\left(\pi(\cdot \mid x, y^{(i)}_{<t}) \,\|\,
    \pi_\mathrm{ref}(\cdot \mid x, y^{(i)}_{<t})\right).$$

    By the chain rule its expectation is KL(policy || reference) of answers of at most `max_new_tokens` tokens, stop
    token included. It replaces each log-ratio of `sampled_kl` by its expectation given what stands before.

    Example:
        >>> row = RowDivergence(logps=[-1.0, -2.0], ref_logps=[-1.5, -1.0], kl=[0.3, 0.1], reverse_kl=[0.0] * 3)
        >>> sequence_kl([row]), sampled_kl([row]), kl_per_token([row])
        (0.4, -0.5, 0.2)
    """
    return math.fsum(value for row in rows for value in row.kl) / len(rows)


def sampled_kl(rows: Sequence[RowDivergence]) -> float:
    r"""KL(policy || reference) per answer by plain Monte Carlo, in nats: right on average, noisy, and may be negative.

    $$\frac{1}{N} \sum_i \sum_t \log \pi(y^{(i)}_t \mid x, y^{(i)}_{<t}) -
    \log \pi_\mathrm{ref}(y^{(i)}_t \mid x, y^{(i)}_{<t}), \qquad y^{(i)} \sim \pi.$$
    """
    return math.fsum(a - b for row in rows for a, b in zip(row.logps, row.ref_logps, strict=True)) / len(rows)


def kl_per_token(rows: Sequence[RowDivergence]) -> float:
    r"""`sequence_kl` over the mean number of tokens of an answer, in nats per token.

    $$\sum_i \sum_t \mathrm{KL}_t^{(i)} \Big/ \sum_i |y^{(i)}|$$

    A policy that learns to stop early moves it without moving `kl`, so that it does not decide.
    """
    count = sum(len(row.kl) for row in rows)
    return math.fsum(value for row in rows for value in row.kl) / max(count, 1)


def released_kl(
    rows: Sequence[RowDivergence], tokens: Sequence[Sequence[int]], *, left_out: Set[int] = frozenset()
) -> float:
    r"""What the released code of DiscoPOP reports as "KL Divergence", in nats per token.

    `torch.nn.functional.kl_div(policy, reference, log_target=True)` is KL(reference || policy), the other direction.
    It is summed over every position $s$ of prompt *and* answer $z$ whose own token is not the end of sequence, the
    position behind the last token included, and divided by the number of these positions:

    $$\sum_i \sum_{s: z_s \ne \mathrm{eos}} \mathrm{KL}\left(\pi_\mathrm{ref}(\cdot \mid z_{\le s}) \,\|\,
    \pi(\cdot \mid z_{\le s})\right) \Big/ \sum_i |\{s: z_s \ne \mathrm{eos}\}|$$

    Since the answers are the policy's and not the reference's, it estimates no divergence of the two.

    Args:
        rows: From `row_divergences`.
        tokens: Token ids of prompt and answer of each row.
        left_out: End of sequence and padding.

    Source:
        https://github.com/SakanaAI/DiscoPOP, scripts/run_eval_imdb.py. Deviation: there the samples were decoded with
        the padding on their left, encoded again, and read with that padding as text; and they were drawn from the 50
        most likely tokens, which transformers does unless told otherwise.
    """
    kept = [
        value
        for row, ids in zip(rows, tokens, strict=True)
        for value, token in zip(row.reverse_kl, ids, strict=True)
        if token not in left_out
    ]
    return math.fsum(kept) / max(len(kept), 1)
