"""What an objective may read, family by family; `engines` computes exactly these names."""

VOCABULARY: dict[str, tuple[str, ...]] = {
    "token": (
        "token_logps",
        "entropy",
        "top_20_entropy",
        "log_normalizer",
        "mean_logits",
        "mean_class_logps",
        "log_sum_sq_probs",
        "max_logps",
        "complement_logps",
    ),
    "region": ("class_probs", "class_ids", "token_logps", "class_mass"),
    "preference": (
        "chosen_logps",
        "rejected_logps",
        "ref_chosen_logps",
        "ref_rejected_logps",
        "chosen_lengths",
        "rejected_lengths",
        "reward_shift",
    ),
    "unpaired": ("logps", "ref_logps", "desirable", "kl", "reward_shift"),
    "metric": ("embeddings", "labels", "proxies", "similarities", "distances", "same", "different"),
}
"""Family -> the statistics that its objectives may name as parameters (design: an objective names what it reads)."""

ITEMS: dict[str, tuple[str, ...]] = {
    "token": ("token",),
    "region": ("region",),
    "preference": ("pair", "completion"),
    "unpaired": ("completion",),
    "metric": ("anchor", "pair", "triplet", "batch"),
}
"""Family -> the kinds of item that its objectives may return one loss for."""

SETTINGS: dict[str, dict[str, object]] = {
    "region": {"region": "batch", "gather": False},
    "metric": {"memory_size": 0, "miner": "none", "miner_epsilon": 0.1, "gather": False},
}
"""Family -> what every module of it can be told beside the objective's own hyper-parameters, with defaults."""
