"""What the policy before training writes: pairs to train on and answers to be compared with, drawn once and kept.

All losses of a block so train on the same pairs, and all runs are compared with the same answers.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lossmith.evaluation.rewards import cut_sentence
from lossmith.evaluation.sampling import label_pairs, sample_answers
from lossmith.evidence import check_writable, write_atomically
from lossmith.integrations.causal_lm.loading import load_causal_lm
from lossmith.integrations.models import cache_folder
from lossmith.studies.provenance import versions
from lossmith.tasks.sentiment import SampledPair, read_pairs, write_pairs

if TYPE_CHECKING:
    from lossmith.studies.sentiment import SentimentSetting

PAIR_STREAM = 2**32
"""Added to the seeds of pairs, so that no pair is drawn by the numbers of the test."""


@dataclass(frozen=True, kw_only=True)
class BlockPairs:
    """The training pairs of one block."""

    pairs: tuple[SampledPair, ...]
    """In the order of the prompts."""
    facts: dict[str, float]
    """Prompts that gave no pair by cause (`equal`, `ties`, `empty`), the mean rewards of both sides, and what the
    length of the reward cost (`answers`, `max_length`, `cut_prompts`, `cut_answers`)."""

    def sentences(self, prompts: int) -> list[str]:
        """What a report must say of it; nothing where every prompt gave a pair and nothing was cut."""
        causes = {"equal": "equal answers", "ties": "answers of equal reward", "empty": "an empty answer"}
        lost = [f"{int(self.facts[name])} had {words}" for name, words in causes.items() if self.facts[name]]
        cut = cut_sentence(
            "answers to training prompts",
            *(int(self.facts[name]) for name in ("answers", "max_length", "cut_prompts", "cut_answers")),
        )
        given = f"{len(self.pairs)} of {prompts} training prompts gave a pair: {', '.join(lost)}."
        return [*([given] if lost else []), *([cut] if cut else [])]


def block_pairs(setting: "SentimentSetting", seed: int, report: Callable[[float], None]) -> BlockPairs:
    """The pairs of a block, from the user's cache, or sampled and kept there.

    Raises:
        DataError: If no pair is left.
        EvidenceError: If the cache cannot be written.
    """
    texts = [prompt.text for prompt in setting.prompts.train]
    folder = _folder(setting, texts, seed=PAIR_STREAM + seed, n=setting.config.answers_per_prompt)

    def make() -> dict[str, float]:
        pairs, facts = _sample_pairs(setting, seed, report)
        write_pairs(folder / "pairs.jsonl", pairs)
        return facts

    facts = _kept(folder / "facts.json", make)
    return BlockPairs(pairs=read_pairs(folder / "pairs.jsonl"), facts=facts)


def start_answers(setting: "SentimentSetting", seed: int) -> dict[str, Any]:
    """What the policy before training answers to the test prompts, with one seed: `answer`, `reward`, `stopped`, and
    `cut`, what the length of the reward cost.

    Raises:
        EvidenceError: If the cache cannot be written.
    """
    texts = [prompt.text for prompt in setting.prompts.test]

    def make() -> dict[str, Any]:
        policy, _ = load_causal_lm(setting.model, device=setting.device, dtype=setting.dtype)
        answers = [own[0] for own in sample_answers(policy, setting.tokenizer, **setting.asked(texts), seed=seed)]
        rewards = setting.reward.score_answers([(answer.whole, answer.answer) for answer in answers])
        return {
            "answer": [answer.answer for answer in answers],
            "reward": rewards.values,
            "stopped": [answer.stopped for answer in answers],
            "cut": rewards.sentence(f"answers before training (sampling seed {seed})"),
        }

    return _kept(_folder(setting, texts, seed=seed, n=1) / "start.json", make)


def _kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a JSON file holds, which is made once even if several processes want it, and is whole or absent."""
    if not path.is_file():
        check_writable(path.parent, needed_mib=5)
        with FileLock(str(path) + ".lock"):
            if not path.is_file():
                write_atomically(path, json.dumps(make()) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def _folder(setting: "SentimentSetting", prompts: list[str], *, seed: int, n: int) -> Path:
    """The folder of these samples, named by what they depend on."""
    config = setting.config
    content: dict[str, Any] = {
        "policy": setting.model.fingerprint,
        "reward": [setting.reward.fingerprint, setting.reward.label, "whole answers"],
        "prompts": prompts,
        "draws": [seed, n],
        "settings": [config.max_new_tokens, config.eval_batch_size, config.weights, setting.device.type],
        "versions": [versions().get(name) for name in ("torch", "transformers")],
    }
    return cache_folder() / "sentiment" / hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _sample_pairs(
    setting: "SentimentSetting", seed: int, report: Callable[[float], None]
) -> tuple[tuple[SampledPair, ...], dict[str, float]]:
    prompts = setting.prompts.train
    policy, _ = load_causal_lm(setting.model, device=setting.device, dtype=setting.dtype)
    answers = sample_answers(
        policy,
        setting.tokenizer,
        **setting.asked([prompt.text for prompt in prompts]),
        seed=PAIR_STREAM + seed,
        per_prompt=setting.config.answers_per_prompt,
        on_batch=lambda done, total: report(done / total),
    )
    scored = setting.reward.score_answers([(answer.whole, answer.answer) for own in answers for answer in own])
    scores = iter(scored.values)
    rewards = [[next(scores) for _ in own] for own in answers]
    found = label_pairs([(prompt.id, prompt.text) for prompt in prompts], answers, rewards)
    both = [(float(p.pair.chosen_score or 0), float(p.pair.rejected_score or 0)) for p in found.pairs]
    means = [sum(side) / len(both) for side in zip(*both, strict=True)]
    facts = {"equal": found.equal, "ties": found.ties, "empty": found.empty, "answers": len(scored.values)}
    facts |= {name: getattr(scored, name) for name in ("max_length", "cut_prompts", "cut_answers")}
    return found.pairs, facts | {"chosen_reward": means[0], "rejected_reward": means[1]}
