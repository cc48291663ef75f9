"""UltraFeedback in pairs: dialogue prompts with the best of four answers and another one, scored by GPT-4."""

from lossmith.tasks._shipped import PreferenceRecord

ULTRAFEEDBACK = PreferenceRecord(
    name="ultrafeedback",
    title="dialogue prompts; of four answers the one that GPT-4 scored best is chosen, a random other one rejected",
    citation=(
        "Ganqu Cui et al. UltraFeedback: boosting language models with scaled AI feedback. ICML 2024. "
        "https://arxiv.org/abs/2310.01377; in pairs: Lewis Tunstall et al. Zephyr: direct distillation of LM "
        "alignment. 2023. https://arxiv.org/abs/2310.16944"
    ),
    licence="MIT",
    source="https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized",
    splits="published: train_prefs and test_prefs; validation is cut from train",
    split_sizes=None,
    hub="HuggingFaceH4/ultrafeedback_binarized",
    split_names=(("train", "train_prefs"), ("test", "test_prefs")),
    layout="`chosen` and `rejected` (messages), perhaps `prompt`, `score_chosen` and `score_rejected`",
)
