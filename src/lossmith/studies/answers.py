"""The test of a completion study: the model writes its answers, and they are judged."""

import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossmith.errors import TrainingDivergedError
from lossmith.evaluation import judge, majority, notice
from lossmith.integrations.causal_lm.encoding import EncodedSet
from lossmith.integrations.causal_lm.generation import Generated, generate, stop_ids
from lossmith.integrations.causal_lm.likelihood import completion_nll, option_logps
from lossmith.integrations.causal_lm.loading import save_causal_lm
from lossmith.integrations.causal_lm.vllm import generate_with_vllm
from lossmith.integrations.models import token_limit

if TYPE_CHECKING:
    from lossmith.studies.completion import AnyTrainer, CompletionSetting

LIKELIHOOD_SHARE = 0.1
"""Share of the test's progress that is scoring right answers and options; the rest is generation."""


def evaluate_answers(
    setting: "CompletionSetting", trainer: "AnyTrainer", report: Callable[[float], None]
) -> dict[str, Any]:
    """Fields of the record that the test gives: metrics, scores, outcomes and outputs of every test problem.

    Raises:
        TrainingDivergedError: If the trained model gives log-probabilities that are no numbers.
    """
    problems, kind = setting.test, setting.task.kind
    model: Any = trainer.model
    model.eval()
    nll = _nll(setting, trainer)
    prompts, cut = _prompts(setting, model)
    scored = _by_likelihood(setting, trainer, prompts) if kind == "choice" else None
    report(LIKELIHOOD_SHARE)

    def generated(done: int, total: int) -> None:
        report(LIKELIHOOD_SHARE + (1 - LIKELIHOOD_SHARE) * done / total)

    samples = _generate(setting, trainer, prompts, generated)
    texts = majority(kind, problems, [[sample.text for sample in row] for row in samples])
    kept = [next(s for s in row if s.text == text) for row, text in zip(samples, texts, strict=True)]
    judged = judge(kind, problems, texts, stopped=[sample.stopped for sample in kept])
    scores, metrics = dict(judged.scores), dict(judged.metrics) | {"nll": nll}
    if scored is not None:
        scores["likelihood_accuracy"] = scored
        metrics["likelihood_accuracy"] = sum(scored) / len(scored)
    sentence = notice(judged, kind)
    said = [f"{trainer.loss}, seed {trainer.args.seed}: {sentence}"] if sentence else []
    if cut:
        said.append(f"{cut} of {len(problems)} test prompts were cut on the left to fit the model or `max_length`.")
    return {
        "metrics": metrics,
        "scores": scores,
        "outcomes": judged.outcomes,
        "outputs": texts,
        **(_letters(setting, judged.answers) if kind == "choice" else {}),
        "config": {
            "notices": [*setting.notices, *said],
            "new_tokens": sum(sample.tokens for sample in kept),
            "released_raises": judged.released_raises,
        },
    }


def answers_nll(setting: "CompletionSetting", model: Any, encoded: EncodedSet) -> tuple[float, int]:
    """Nats of right answers, each token given the true ones before it, and how many tokens they are."""
    rows = [(row.input_ids, row.answer_start) for row in encoded.rows]
    return completion_nll(model, setting.tokenizer, rows, batch_size=setting.config.eval_batch_size)


def _nll(setting: "CompletionSetting", trainer: "AnyTrainer") -> float:
    """Nats per token of the right answers."""
    nats, tokens = answers_nll(setting, trainer.model, setting.test_rows)
    if not abs(nats) < float("inf"):
        recent = [point[1] for point in trainer.curves["train_objective"][-4:]]
        raise TrainingDivergedError(trainer.state.global_step, [*recent, float("nan")])
    return nats / tokens


def _prompts(setting: "CompletionSetting", model: Any) -> tuple[list[list[int]], int]:
    """Tokens of the test prompts, and how many of them were cut."""
    config = setting.config
    limit = token_limit(model, setting.tokenizer)
    room = None if limit is None else limit - config.max_new_tokens
    if config.encoding == "released":
        room = config.max_length if room is None else min(room, config.max_length)
    whole = [setting.format.prompt_ids(problem.prompt, problem.question) for problem in setting.test]
    if room is None:
        return whole, 0
    prompts = [setting.format.prompt_cut(ids, room)[0] for ids in whole]
    return prompts, sum(len(short) < len(ids) for short, ids in zip(prompts, whole, strict=True))


def _by_likelihood(setting: "CompletionSetting", trainer: "AnyTrainer", prompts: list[list[int]]) -> list[float]:
    """1 where the right option is the likeliest one."""
    options = [
        [setting.format.option_ids(problem.prompt, option) for option in problem.options] for problem in setting.test
    ]
    logps = option_logps(trainer.model, setting.tokenizer, prompts, options, batch_size=setting.config.eval_batch_size)
    best = [max(range(len(row)), key=row.__getitem__) for row in logps]
    return [float(place == problem.label) for place, problem in zip(best, setting.test, strict=True)]


def _generate(
    setting: "CompletionSetting", trainer: "AnyTrainer", prompts: list[list[int]], on_batch: Callable[[int, int], None]
) -> list[list[Generated]]:
    config = setting.config
    asked: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "votes": config.votes,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "seed": trainer.args.seed,
        "on_batch": on_batch,
    }
    model: Any = trainer.model
    # A chat template may end a turn with another token than the tokenizer's end of sequence.
    stops = sorted({*stop_ids(model, setting.tokenizer), setting.format.stop_token_id})
    if setting.backend == "transformers":
        # Training is over, so that rounding by adding the adapters to the weights and taking them out is harmless.
        return generate(
            model,
            setting.tokenizer,
            prompts,
            batch_size=config.eval_batch_size,
            stop_token_ids=stops,
            merge=True,
            **asked,
        )
    with tempfile.TemporaryDirectory(prefix="lossmith-") as folder:
        # vLLM needs the device's memory; what is saved later keeps its adapters apart.
        save_causal_lm(deepcopy(model.to("cpu")), setting.tokenizer, Path(folder))
        return generate_with_vllm(
            folder, prompts, tokenizer=setting.tokenizer, stop_token_ids=stops, dtype=config.weights, **asked
        )


def _letters(setting: "CompletionSetting", answers: list[str | None]) -> dict[str, list[int]]:
    """Right and given letters as numbers; one more than the options where none was given."""
    names = setting.described(setting.config.blocks[0])["label_names"]
    given = [names.index(answer) if answer in names else len(names) - 1 for answer in answers]
    return {"predictions": given, "labels": [int(problem.label or 0) for problem in setting.test]}
