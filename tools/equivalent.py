"""Mutations that cannot change any result beyond rounding, each with the reason.

The key is the file (from `src/lossmith`), the function and the text that `mutate.py` prints. A mutation belongs here
only if no input within the contract tells it apart; a mutation that no test sees is a hole in the tests.
"""

LOVASZ, OVERLAP, GATED = "objectives/region/lovasz.py", "objectives/region/overlap.py", "objectives/token/gated.py"
UNIT = "F.normalize(vectors, dim=-1) if normalize else vectors"
FLOOR = "1 - torch.zeros_like(class_probs[0]).scatter_reduce(0, class_ids, own.detach(), 'amax')"
EMPTY = "part.hits.sum() + part.leaked.sum()"
NO_GRADIENT = "What comes out is a bool or an order, which has no gradient."
NO_CLASS = "Reached without a token only: sums over no class, 0 with whatever sign."
NOT_CHOSEN = "The product is 0 or at least 2, and 0 only where `torch.where` takes the other branch."

EQUIVALENT: dict[tuple[str, str, str], str] = {
    ("_numerics.py", "masked_logsumexp", "floor=-1e+30 -> 1% more"): (
        "Any floor this low has weight 0 beside a score; a row that keeps nothing stays far below all scores."
    ),
    ("objectives/metric/_pieces.py", "unit", f"{UNIT} -> -({UNIT})"): (
        "Embeddings and proxies both turn round, and only their products and lengths are read."
    ),
    (LOVASZ, "lovasz_softmax_loss", f"{FLOOR} -> {FLOOR.replace('1 - ', '-')}"): (
        "A lower floor lets more entries in, all behind the last one of the class, where the slope is 0: only time."
    ),
    (LOVASZ, "lovasz_softmax_loss", "own.detach() -> own"): NO_GRADIENT,
    (LOVASZ, "lovasz_softmax_loss", "class_probs.detach() -> class_probs"): NO_GRADIENT,
    (LOVASZ, "lovasz_softmax_loss", "errors.detach() -> errors"): NO_GRADIENT,
    (LOVASZ, "_jaccard_slopes", "(union * (union - 1)).clamp(min=1) -> union * (union - 1)"): NOT_CHOSEN,
    (LOVASZ, "_jaccard_slopes", "min=1 -> min=1.01"): NOT_CHOSEN,
    (OVERLAP, "generalized_dice_loss", f"{EMPTY} -> -({EMPTY})"): NO_CLASS,
    (OVERLAP, "generalized_dice_loss", f"{EMPTY} -> {EMPTY.replace('+', '-')}"): NO_CLASS,
    (OVERLAP, "generalized_dice_loss", f"{EMPTY} -> part.leaked.sum()"): NO_CLASS,
    (OVERLAP, "_released_dice", "16 * torch.finfo(absent.dtype).eps -> 16.16 * torch.finfo(absent.dtype).eps"): (
        "A bound on rounding, tested to lie between 8 and 32 roundings; 1% of it decides about rounding only."
    ),
    (GATED, "deft_loss", "min=1e-30 -> min=1.01e-30"): (
        "The squared probabilities of V classes sum to at least 1/V, so that the floor is never reached."
    ),
    (GATED, "tailr_loss", "max=1.0 -> max=1.01"): "p / (gamma + (1 - gamma) p) exceeds 1 by rounding only.",
    (
        GATED,
        "mile_loss",
        "at_least_float32(entropy).detach().clamp(min=0) -> at_least_float32(entropy).detach()",
    ): "An entropy is below 0 by rounding only, and log(1 + entropy) then is too.",
}
