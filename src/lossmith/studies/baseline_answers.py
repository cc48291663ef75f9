"""The answers of one model as it is: written in batches, kept as they finish, judged."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lossmith.errors import ConfigurationError
from lossmith.evaluation import Judgement, judge, majority, notice, pass_rate
from lossmith.integrations.causal_lm.encoding import PromptFormat
from lossmith.integrations.causal_lm.generation import Generated, generate, stop_ids
from lossmith.integrations.causal_lm.likelihood import option_logps
from lossmith.integrations.causal_lm.loading import load_causal_lm
from lossmith.integrations.causal_lm.vllm import PROMPTS_AT_ONCE, VllmEngine
from lossmith.integrations.models import ResolvedModel, token_limit
from lossmith.studies.answer_log import AnswerLog
from lossmith.studies.baseline_config import BaselineConfig
from lossmith.tasks import CompletionTask, Problem
from lossmith.tasks.completion import pairs

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many problems are done, and how many there are."""
SAMPLES = 8
"""Answers per model that a result shows."""
RATES = {
    "math": ("exact_match", "flexible_match", "answered", "stopped"),
    "choice": ("accuracy", "likelihood_accuracy", "answered", "stopped"),
    "text": ("exact_match", "answered", "stopped"),
}
"""Kind of answers -> metrics that an example passes or not."""


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """What one model answered."""

    model: str
    """As the user wrote it."""
    fingerprint: str
    """SHA-256 over configuration, weights and tokenizer."""
    chat: bool
    """Whether the prompts were put into its chat template."""
    rates: dict[str, tuple[float, float, float]]
    """Metric -> share of the test problems, lower and upper end of its 95% Wilson interval."""
    metrics: dict[str, float]
    """Means of all metrics."""
    outcomes: dict[str, int]
    """Class of answers -> how many."""
    new_tokens: float
    """Mean length of the answers, in tokens."""
    notices: tuple[str, ...]
    """What a reader must know."""
    samples: tuple[dict[str, str], ...]
    """Some problems with what was asked, wanted and answered."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is the same for all models."""

    config: BaselineConfig
    task: CompletionTask
    problems: tuple[Problem, ...]
    exemplars: tuple[Problem, ...]
    device: torch.device
    backend: str
    answers: AnswerLog
    options: AnswerLog
    progress: Progress


def answers_of(work: Work, model: ResolvedModel) -> ModelResult:
    """The answers of one model, from the folder where they are finished, and what they are worth."""
    config, task, problems = work.config, work.task, work.problems
    network, tokenizer = load_causal_lm(model, device=work.device, dtype=config.dtype)
    form = _format(work, model, tokenizer)
    prompts, cut = _prompts(work, model, form, token_limit(network, tokenizer))
    every = range(len(problems))
    if task.kind == "choice":
        _score_options(work, model.name, network, form, prompts)
    if not work.answers.has(model.name, every):
        _write_answers(work, model, network, form, prompts)
    del network
    samples = [[Generated(**sample) for sample in work.answers.of(model.name, row)["samples"]] for row in every]
    texts = majority(task.kind, problems, [[sample.text for sample in row] for row in samples])
    kept = [next(s for s in row if s.text == text) for row, text in zip(samples, texts, strict=True)]
    judged = judge(task.kind, problems, texts, stopped=[sample.stopped for sample in kept])
    scores, metrics = dict(judged.scores), dict(judged.metrics)
    if task.kind == "choice":
        logps = [work.options.of(model.name, row)["logps"] for row in every]
        right = [float(int(np.argmax(row)) == one.label) for row, one in zip(logps, problems, strict=True)]
        scores["likelihood_accuracy"], metrics["likelihood_accuracy"] = right, sum(right) / len(right)
    said = [f"{cut} of {len(problems)} prompts were cut on the left to fit the model."] if cut else []
    said += [sentence for sentence in [notice(judged, task.kind)] if sentence]
    return ModelResult(
        model=model.name,
        fingerprint=model.fingerprint,
        chat=form.chat,
        rates={name: pass_rate(scores[name]) for name in RATES[task.kind]},
        metrics=metrics,
        outcomes={name: judged.outcomes.count(name) for name in sorted(set(judged.outcomes))},
        new_tokens=sum(sample.tokens for row in samples for sample in row) / sum(len(row) for row in samples),
        notices=tuple(said),
        samples=_shown(problems, texts, judged),
    )


def _format(work: Work, model: ResolvedModel, tokenizer: Any) -> PromptFormat:
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if work.config.prompts == "chat" and not has_template:
        raise ConfigurationError(
            f"`--model {model.name}` has no chat template: leave --chat out, or give an instruct model."
        )
    trained = _trained_with(model)
    by_default = has_template if trained is None else trained.get("prompts") == "chat"
    return PromptFormat(
        tokenizer,
        chat=by_default if work.config.prompts == "auto" else work.config.prompts == "chat",
        instruction=work.task.instruction,
        exemplars=pairs(work.exemplars),
        joint=trained is None or trained.get("encoding") != "exact",
    )


def _trained_with(model: ResolvedModel) -> dict[str, Any] | None:
    """The settings of a model that `lossmith train` made: it is asked as it was trained; None for others."""
    record = Path(model.location) / "result.json"
    if not record.is_file():
        return None
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        return None
    config = found.get("config") if isinstance(found, dict) else None
    return config if isinstance(config, dict) and "encoding" in config else None


def _prompts(work: Work, model: ResolvedModel, form: PromptFormat, limit: int | None) -> tuple[list[list[int]], int]:
    """Tokens of the prompts, and how many of them were cut.

    Raises:
        ConfigurationError: If the model has no room for an answer, or not for all solved problems before one.
    """
    config = work.config
    whole = form.many_prompt_ids([(problem.prompt, problem.question) for problem in work.problems])
    if limit is None:
        return whole, 0
    room, longest = limit - config.max_new_tokens, max(len(ids) for ids in whole)
    if room < 1:
        raise ConfigurationError(
            f"`max_new_tokens` must be < {limit}, the most that {model.name} reads, got {config.max_new_tokens}."
        )
    if config.few_shot and longest > room:
        raise ConfigurationError(
            f"With `few_shot` {config.few_shot} a prompt has {longest} tokens, and {model.name} reads {limit}, of "
            f"which {config.max_new_tokens} are for the answer: lower --few-shot or --max-new-tokens."
        )
    return [form.prompt_cut(ids, room)[0] for ids in whole], sum(len(ids) > room for ids in whole)


def _batches(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Numbers of the prompts of each batch, like lengths together: the same however often the work was stopped."""
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _score_options(work: Work, model: str, network: Any, form: PromptFormat, prompts: list[list[int]]) -> None:
    """Log-probabilities of the options that are not in the folder yet."""
    done = 0
    for batch in _batches(prompts, work.config.batch_size):
        if not work.options.has(model, batch):
            asked = [work.problems[row] for row in batch]
            options = [[form.option_ids(problem.prompt, option) for option in problem.options] for problem in asked]
            logps = option_logps(
                network, form.tokenizer, [prompts[row] for row in batch], options, batch_size=work.config.batch_size
            )
            work.options.add(model, {row: {"logps": values} for row, values in zip(batch, logps, strict=True)})
        done += len(batch)
        work.progress(f"{model}: options", done, len(prompts))


def _write_answers(
    work: Work, model: ResolvedModel, network: Any, form: PromptFormat, prompts: list[list[int]]
) -> None:
    """Answers that are not in the folder yet."""
    config = work.config
    # A batch is a call of its own, so that it is the same whether those before it are repeated or not.
    size = PROMPTS_AT_ONCE if work.backend == "vllm" else max(1, config.batch_size // config.votes)
    stops = sorted({*stop_ids(network, form.tokenizer), form.stop_token_id})
    done = 0
    with _writer(work, model, network, form.tokenizer) as write:
        for number, batch in enumerate(_batches(prompts, size)):
            if not work.answers.has(model.name, batch):
                written = write(
                    [prompts[row] for row in batch],
                    max_new_tokens=config.max_new_tokens,
                    votes=config.votes,
                    temperature=config.temperature,
                    top_p=config.top_p,
                    seed=int(np.random.SeedSequence((config.seed, number)).generate_state(1)[0]),
                    stop_token_ids=stops,
                )
                entries = {
                    row: {
                        "id": work.problems[row].id,
                        "samples": [asdict(_first_block(form, sample)) for sample in samples],
                    }
                    for row, samples in zip(batch, written, strict=True)
                }
                work.answers.add(model.name, entries)
            done += len(batch)
            work.progress(f"{model.name}: answers", done, len(prompts))


@contextlib.contextmanager
def _writer(work: Work, model: ResolvedModel, network: Any, tokenizer: Any) -> Iterator[Callable[..., Any]]:
    """What turns prompts into answers."""
    if work.backend == "transformers":
        yield lambda prompts, **asked: generate(network, tokenizer, prompts, batch_size=work.config.batch_size, **asked)
        return
    network.to("cpu")
    with VllmEngine(model.location, dtype=work.config.weights) as engine:
        yield lambda prompts, **asked: engine.generate(tokenizer, prompts, **asked)


def _first_block(form: PromptFormat, sample: Generated) -> Generated:
    """An answer behind solved problems ends at the first empty line, as theirs do: the next problem would follow."""
    if form.chat or not form.exemplars:
        return sample
    text, separator, _ = sample.text.partition("\n\n")
    return Generated(text=text, tokens=sample.tokens, stopped=sample.stopped or bool(separator))


def _shown(problems: Sequence[Problem], texts: Sequence[str], judged: Judgement) -> tuple[dict[str, str], ...]:
    step = max(len(problems) // SAMPLES, 1)
    return tuple(
        {
            "id": problems[row].id,
            "prompt": problems[row].prompt,
            "target": problems[row].target,
            "answer": texts[row],
            "outcome": judged.outcomes[row],
        }
        for row in range(0, len(problems), step)[:SAMPLES]
    )
