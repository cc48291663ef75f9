"""Reviews, and a classifier that reads single characters, for studies of sentiment with tiny random models."""

import json
import string
from pathlib import Path

import tiny


def write_reviews(folder: Path) -> Path:
    """A folder of film reviews without labels."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = tiny.sentences(160, 5)
    for name, part in (("train", rows[:120]), ("test", rows[120:])):
        text = "".join(json.dumps({"text": row["text"]}) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_reward(folder: Path, names: tuple[str, ...] = ("negative", "positive"), *, spread: float = 1.0) -> Path:
    """A random BERT that weighs the letters of a text, wherever they stand; with `spread` 0 it says the same of all."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir(parents=True)
    letters = [*string.ascii_lowercase, *string.digits]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters)]
    vocabulary += list(string.punctuation)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        id2label=dict(enumerate(names)),
        label2id={name: place for place, name in enumerate(names)},
    )
    torch.manual_seed(3)
    model = BertForSequenceClassification(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            # Attention alike to all letters, so that a small model can learn what is rewarded.
            still = ("query", "key", "position") + (() if spread else ("classifier",))
            torch.nn.init.normal_(parameter, std=0.0 if any(word in name for word in still) else 1.0)
    if spread:
        model.classifier.weight.data *= spread
        # As rewarding as not, on average.
        model.classifier.bias.data[-1] = -5.2 * spread
    model.save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return folder
