"""Where the hyper-parameters of each loss are searched."""

LOG = True
RANGES: dict[str, dict[str, tuple[float, float] | tuple[float, float, bool]]] = {
    "cross_entropy": {"label_smoothing": (0, 0.3)},
    "focal": {"gamma": (0, 5)},
    "self_adjusting_dice": {"alpha": (0.1, 1), "gamma": (0.1, 2)},
    "poly1": {"epsilon": (0, 6)},
    "entropy_adaptive": {"alpha": (0, 2)},
    "generalized_cross_entropy": {"q": (0.1, 1)},
    "confidence_penalty": {"coefficient": (0.01, 1, LOG)},
    "z_loss": {"coefficient": (1e-5, 0.1, LOG)},
    "tailr": {"gamma": (1e-7, 0.1, LOG), "min_weight": (0, 0.3)},
    "mile": {"gamma": (0, 2)},
    "dice": {"smooth": (0.01, 10, LOG)},
    "jaccard": {"smooth": (0.01, 10, LOG)},
    "generalized_dice": {"smooth": (0, 1)},
    "tversky": {"alpha": (0.1, 0.9), "beta": (0.1, 0.9), "smooth": (0.01, 10, LOG)},
    "focal_tversky": {"alpha": (0.1, 0.9), "beta": (0.1, 0.9), "smooth": (0.01, 10, LOG), "gamma": (0.75, 3)},
    # Metric losses: the few-shot papers tried scales 1 and 8 to 9, margins 0.1 to 0.7 (5 without normalisation),
    # alpha 0.1 and 32, temperature 0.1, and 5 and 25 centres.
    "soft_triple": {
        "scale": (2, 40, LOG),
        "gamma": (0.01, 1, LOG),
        "margin": (0, 0.8),
        "centers_per_class": (1, 25),
    },
    "proxy_anchor": {"alpha": (0.1, 64, LOG), "margin": (0, 0.5)},
    "proxy_nca": {"scale": (0.5, 32, LOG)},
    "normalized_softmax": {"temperature": (0.02, 0.5, LOG)},
    "cosface": {"margin": (0, 0.6), "scale": (4, 128, LOG)},
    "arcface": {"margin": (5, 45), "scale": (4, 128, LOG)},
    "supcon": {"temperature": (0.02, 1, LOG)},
    "nt_xent": {"temperature": (0.02, 1, LOG)},
    "nca": {"scale": (0.5, 32, LOG)},
    "multi_similarity": {"alpha": (0.5, 16, LOG), "beta": (10, 100, LOG), "base": (0, 1)},
    "circle": {"margin": (0.1, 0.6), "gamma": (16, 256, LOG)},
    "triplet_margin": {"margin": (0.01, 1, LOG)},
    "contrastive": {"pos_margin": (0, 0.5), "neg_margin": (0.25, 1.75)},
    "lifted_structure": {"pos_margin": (0, 0.5), "neg_margin": (0.25, 1.75)},
}
"""Loss -> hyper-parameter -> where it is searched; a range is widened to hold the value that the user wrote."""
SHARE = (0.1, 0.9)
"""Where b, the share of cross-entropy in a joint objective, is searched."""
