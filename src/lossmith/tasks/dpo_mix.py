"""dpo-mix-7k: highly rated dialogues of three sets, the data of the discovered preference losses."""

from lossmith.tasks._shipped import PreferenceRecord

DPO_MIX = PreferenceRecord(
    name="dpo_mix",
    title="dialogues of Capybara, Orca and UltraFeedback whose chosen answer is highly rated",
    citation="Argilla. DPO Mix 7K. 2024. https://huggingface.co/datasets/argilla/dpo-mix-7k",
    licence="MIT, as its data card says",
    source="https://huggingface.co/datasets/argilla/dpo-mix-7k",
    splits="published: train and test; validation is cut from train",
    split_sizes=None,
    hub="argilla/dpo-mix-7k",
    layout="`chosen` and `rejected` (messages), perhaps `chosen_rating` and `rejected_rating`",
)
