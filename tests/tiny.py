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


def write_causal_model(folder: Path, *, dropout: float = 0.0, seed: int = 7) -> Path:
    """A random two-layer Llama of width 32 whose tokens are single characters, as a folder that transformers loads."""
    import string

    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<eos>", "<unk>", *sorted(string.printable)]
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=128
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        attention_dropout=dropout,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sums(count: int, seed: int) -> list[dict[str, str]]:
    """Distinct sums of two small numbers with one worked step."""
    pairs = [(a, b) for a in range(20) for b in range(20)]
    drawn = random.Random(seed).sample(pairs, count)
    return [
        {"question": f"{a}+{b}?", "answer": str(a + b), "solution": f"<<{a}+{b}={a + b}>> #### {a + b}"}
        for a, b in drawn
    ]


def write_sums(folder: Path, *, train: int = 24, validation: int = 6, test: int = 8) -> Path:
    """A task file with the sums beside it: `folder/sums.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = sums(train + validation + test, 3)
    parts = {"train": rows[:train], "validation": rows[train : train + validation], "test": rows[train + validation :]}
    for name, part in parts.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    task = {
        "name": "sums",
        "kind": "math",
        "prompt": "Q: {question}\nA: ",
        "target": "{solution}",
        "data": {name: f"{name}.jsonl" for name in parts},
    }
    (folder / "sums.yaml").write_text(json.dumps(task), encoding="utf-8")
    return folder / "sums.yaml"


def write_pairs(path: Path, *, count: int = 40) -> Path:
    """Pairs of answers to sums as a JSONL file; the better answer is the shorter one."""
    rows = [{"prompt": f"{i}+{i}?", "chosen": f" yes {2 * i}", "rejected": f" no {i}, not"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_rated(path: Path, *, count: int = 60) -> Path:
    """Answers to sums as a JSONL file, rated one by one; a third is good, and the good ones are the shorter ones."""
    rows = [
        {"prompt": f"{i}+{i}?", "completion": f" no {i}, not" if i % 3 else f" yes {2 * i}", "label": i % 3 == 0}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
