"""A tiny random encoder and a small data set on disk: whole studies in a second, no pretrained weights."""

import json
import random
from pathlib import Path

WORDS = [
    "good", "fine", "great", "lovely", "bright", "warm", "bad", "dull", "poor", "awful", "cold", "grim",
    "the", "a", "film", "plot", "cast", "scene", "is", "was", "and", "very", "quite", "so",
]  # fmt: skip
POSITIVE, NEGATIVE, FILLER = WORDS[:6], WORDS[6:12], WORDS[12:]


def write_model(folder: Path, *, dropout: float = 0.1) -> Path:
    """A random two-layer BERT of width 16 with a word-level vocabulary, as a folder that transformers loads."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(7)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(count: int, seed: int) -> list[dict[str, str]]:
    """Distinct labelled sentences, half of each class."""
    draw = random.Random(seed)
    rows, seen = [], set()
    while len(rows) < count:
        label = ("negative", "positive")[len(rows) % 2]
        words = draw.sample(FILLER, 5) + draw.sample(POSITIVE if label == "positive" else NEGATIVE, 2)
        draw.shuffle(words)
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            rows.append({"text": text, "label": label})
    return rows


def write_data(path: Path, *, count: int = 80, seed: int = 3) -> Path:
    """The sentences as a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in sentences(count, seed)), encoding="utf-8")
    return path
