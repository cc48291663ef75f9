"""What the defects of the released segmentation-loss code amount to, each as a number beside the corrected one.

    python benchmarks/released_defects.py [--model embedded:smollm2-135m] [--gsm8k test.jsonl] [--json defects.json]

Released losses are `lossmith.integrations.causal_lm.released` (masked rows zeroed), released metrics
`lossmith.evaluation.released`; the latter were checked against the released functions. `--gsm8k` takes the published
test file, whose answers still have their thousands commas (the shipped rows have them removed).
"""

import argparse
import gzip
import json
import math
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

import lossmith
from lossmith.evaluation import judge
from lossmith.evaluation.released import released_math
from lossmith.integrations.causal_lm.encoding import encode_released
from lossmith.integrations.causal_lm.released import SECONDS
from lossmith.integrations.models import resolve_model
from lossmith.objectives import self_adjusting_dice_loss
from lossmith.tasks import load_completion_task

VOCAB = 49_152
Row = dict[str, str | float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded:smollm2-135m", help="its tokenizer counts lengths")
    parser.add_argument("--gsm8k", type=Path, help="published gsm8k test file, with its commas")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(options.model).location)
    found = [
        *gradients(),
        lovasz_half_masked(),
        focal_half_masked(),
        *self_adjusting_dice(),
        *answers(options.gsm8k),
        mathqa_options(),
        *lengths_and_eos(tokenizer),
        operators_in_inverted(),
        lovasz_over_the_vocabulary(),
    ]
    print("| defect | as released | corrected |\n| :--- | ---: | ---: |")
    for row in found:
        print(f"| {row['defect']} | {_shown(row['released'])} | {_shown(row['corrected'])} |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def gradients() -> list[Row]:
    """Of the logits of 64 tokens, for a model that knows nothing and one that gives its label 0.9 at the median."""
    rows = []
    for name, lead in (("a random model", 0.0), ("a trained model", 14.8)):
        logits, labels = _logits(64, lead)
        norms = {
            text: _gradient(lossmith.loss(text), logits, labels).abs().max().item()
            for text in ("0.4*generalized_dice(form='released')", "0.4*generalized_dice", "0.6*cross_entropy")
        }
        released, corrected, entropy = norms.values()
        what = f"largest gradient of 0.4 generalized dice over that of 0.6 cross-entropy, {name} of {VOCAB:,} classes"
        rows.append(_row(what, released / entropy, corrected / entropy))
    return rows


def lovasz_half_masked() -> Row:
    logits, labels = _logits(64, 20.0)
    labels[::2] = -100
    return _both("Lovász, 32 of 64 tokens masked, the others nearly perfect", "lovasz_softmax", logits, labels)


def focal_half_masked() -> Row:
    logits, labels = _logits(64, 14.8)
    labels[::2] = -100
    logits[::4] = _logits(16, 0.0)[0]
    return _both("focal, 32 of 64 tokens masked, the others of a trained model", "focal", logits, labels)


def self_adjusting_dice() -> list[Row]:
    """Alpha 1 falls until p = 0.5 and rises behind; the corrected recipes take alpha 0.1."""
    probs = torch.tensor([0.5, 0.999], dtype=torch.float64).log()
    released, corrected = (self_adjusting_dice_loss(probs, alpha=alpha, gamma=1.0) for alpha in (1.0, 0.1))
    return [
        _row(
            f"self-adjusting dice of a token at p = {p} (corrected: alpha 0.1)", released[i].item(), corrected[i].item()
        )
        for i, p in enumerate((0.5, 0.999))
    ]


def answers(published: Path | None) -> list[Row]:
    task = load_completion_task("gsm8k")
    targets = {problem.id: problem.target for problem in task.test}
    judgement = judge("math", task.test, list(targets.values()), stopped=[True] * len(targets))
    shares = [1 - judgement.metrics[name] for name in ("released_exact_match", "exact_match")]
    rows = [_row("gsm8k test targets that do not match themselves (negative; commas removed)", *shares)]
    if published:
        lines = [json.loads(line)["answer"] for line in published.read_text().splitlines()]
        scores = [released_math(line, line) for line in lines]
        rows.append(
            _row(
                "published gsm8k test answers that stop the evaluation (commas)", _share(s.raises for s in scores), 0.0
            )
        )
        wrong = _share(not s.metrics["exact_match"] for s in scores)
        rows.append(_row("published gsm8k test answers that do not match themselves", wrong, 0.0))
    return rows


def mathqa_options() -> Row:
    """`a ) x , b ) y , ...` rebuilt from the choices, split at its commas, as the released script does."""
    slots, wrong = 0, 0
    for line in _mathqa_choices():
        parts = " , ".join(f"{letter} ) {choice}" for letter, choice in zip("abcde", line, strict=True)).split(",")
        for place, choice in enumerate(line):
            slots += 1
            wrong += re.sub(r"^[a-e] \)", "", parts[place].strip()).strip() != choice
    return _row(
        f"share of {slots:,} MathQA option slots (test) that splitting at commas gets wrong", wrong / slots, 0.0
    )


def lengths_and_eos(tokenizer) -> list[Row]:
    problems = load_completion_task("gsm8k").test
    texts = [(problem.prompt, problem.question, problem.target) for problem in problems]
    short, long = encode_released(tokenizer, texts, 128), encode_released(tokenizer, texts, 384)
    cut = (short.cut_rows + short.dropped_rows) / len(problems)
    what = "gsm8k test sequences that lose the start of their question at 128 tokens (corrected: 384)"
    tokenizer.pad_token = tokenizer.eos_token
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batch = collate([{"input_ids": row.input_ids} for row in short.rows])
    trained = int((batch["labels"] == tokenizer.eos_token_id).sum())
    return [
        _row(what, cut, (long.cut_rows + long.dropped_rows) / len(problems)),
        _row(f"EOS labels trained, of {len(short.rows)} answers (pad := eos)", trained, len(short.rows)),
    ]


def operators_in_inverted() -> Row:
    """One operator of each gsm8k test target is replaced by another: no operand is inverted."""
    rng = random.Random(0)
    problems, texts = load_completion_task("gsm8k").test, []
    for problem in problems:
        places = [found.start() for found in re.finditer(r"(?<=[\d)])[-+*/](?=[^<>=]*=)", problem.target)]
        place = rng.choice(places) if places else 0
        other = rng.choice([sign for sign in "+-*/" if sign != problem.target[place]])
        changed = problem.target[:place] + other + problem.target[place + 1 :]
        texts.append(changed if places else problem.target)
    metrics = judge("math", problems, texts, stopped=[True] * len(texts)).metrics
    what = "inverted operands, gsm8k test targets with one operator changed and no operand moved"
    return _row(what, metrics["released_inverted_operands"], metrics["inverted_operands"])


def lovasz_over_the_vocabulary() -> Row:
    logits, labels = _logits(128, 14.8)
    present = lossmith.loss("lovasz_softmax")

    def all_classes() -> None:
        probs = logits.softmax(dim=-1)
        for label in range(VOCAB):
            if (labels == label).sum() == 0:
                continue
            errors, order = ((labels == label).float() - probs[:, label]).abs().sort(descending=True)
            _ = errors, order

    seconds = [_median_seconds(run) for run in (all_classes, lambda: present(logits, labels))]
    return _row(f"seconds of one Lovász forward pass, 128 tokens, {VOCAB:,} classes", *seconds)


def _logits(tokens: int, lead: float) -> tuple[Tensor, Tensor]:
    """Normal logits of deviation 2, the label's raised by `lead`."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1, VOCAB, (tokens,), generator=generator)
    logits = 2 * torch.randn(tokens, VOCAB, generator=generator)
    return logits + lead * F.one_hot(labels, VOCAB), labels


def _gradient(loss: Callable, logits: Tensor, labels: Tensor) -> Tensor:
    leaf = logits.double().requires_grad_()
    loss(leaf, labels).backward()
    assert leaf.grad is not None
    return leaf.grad


def _both(what: str, name: str, logits: Tensor, labels: Tensor) -> Row:
    released = SECONDS[name][0](logits.unsqueeze(0), labels.unsqueeze(0))
    return _row(what, released.item(), lossmith.loss(name)(logits, labels).item())


def _mathqa_choices() -> list[list[str]]:
    folder = Path(lossmith.__file__).parent / "tasks" / "data" / "mathqa" / "test.jsonl.gz"
    with gzip.open(folder, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["choices"] for line in lines]


def _median_seconds(run: Callable[[], object], repeats: int = 5) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def _share(flags) -> float:
    return fmean(map(float, flags))


def _row(defect: str, released: float, corrected: float) -> Row:
    return {"defect": defect, "released": released, "corrected": corrected}


def _shown(value: str | float) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and (value == 0 or not math.isfinite(value)):
        return str(value)
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 0.01 else f"{value:.4f}"


if __name__ == "__main__":
    main()
