"""`lossmith answer` and `lossmith judge`: answers of a model to questions, and what a judge makes of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lossmith.cli.shared import Device, folder_name, plain, require_train_extra
from lossmith.errors import ConfigurationError, DataError, JudgeError

AT_ENDPOINT: tuple[str, ...] = ("mt_bench", "pairs", "tldr")
OFFLINE: tuple[str, ...] = ("reward", "likelihood")
KINDS = AT_ENDPOINT + OFFLINE
STYLES = {"pairs": "helpful", "tldr": "concise"}
READ_BY: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    (
        "base_url", "concurrency", "max_calls", "max_tokens", "timeout", "tries", "temperature", "reply_tokens",
        "repeats", "cache",
    ),
    AT_ENDPOINT,
) | {
    "logprobs": ("pairs", "tldr"),
    "difficulties": ("pairs",),
    "gamed": ("pairs",),
    "label": ("reward",),
    "device": OFFLINE,
}  # fmt: skip
"""Kinds that read an option; those that are not here are read by all."""


def answer(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="embedded: name, folder or hub id.")],
    questions: Annotated[
        str, typer.Option(help="mt_bench, alpaca_eval:FOLDER, tldr:FOLDER, pairs:TASK, or a file with turns or prompt.")
    ],
    out: Annotated[Path, typer.Option(help="A .jsonl file; continued if it holds answers of the same settings.")],
    name: Annotated[str | None, typer.Option(help="What the file calls the model; MODEL.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 1024,
    temperature: Annotated[float | None, typer.Option(help="By default MT-Bench's by category, else 0.")] = None,
    batch_size: Annotated[int, typer.Option(help="Answers written at once.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Questions; by default all.")] = None,
    seed: Annotated[int, typer.Option(help="Of samples.")] = 0,
    device: Device = None,
) -> None:
    """Let a model answer questions of one or more turns."""
    require_train_extra()
    from lossmith.evaluation.judging import AnswerSettings, write_answers
    from lossmith.evaluation.judging.sources import questions_from
    from lossmith.integrations.causal_lm import load_causal_lm
    from lossmith.integrations.models import resolve_model
    from lossmith.report.live import BatchProgress
    from lossmith.studies.run import pick_device

    settings = AnswerSettings(max_new_tokens=max_new_tokens, batch_size=batch_size, temperature=temperature, seed=seed)
    if limit is not None and limit < 1:
        raise ConfigurationError(f"`limit` must be >= 1, got {limit}.")
    asked = questions_from(questions)[:limit]
    found = resolve_model(model)
    network, tokenizer = load_causal_lm(found, device=pick_device(device or "auto"))
    console = Console()
    with _stoppable("Finished answers are kept"), BatchProgress(console) as bar:
        written = write_answers(
            network,
            tokenizer,
            asked,
            out.expanduser(),
            name=name or model,
            fingerprint=found.fingerprint,
            settings=settings,
            on_answers=lambda done, total: bar.moved("answers", done, total),
        )
    for line in _of_answers(written, out, max_new_tokens):
        _say(console, line)


def _of_answers(written: Any, out: Path, max_new_tokens: int) -> Iterator[str]:
    yield f"{written.answers} questions are answered in {out}, {written.kept} of them before."
    if written.unfinished:
        yield f"note: {written.unfinished} answers were cut off at {max_new_tokens} tokens."
    if written.cut_prompts:
        yield f"note: {written.cut_prompts} prompts were cut on the left to fit the model."


def judge(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="WHAT", help="mt_bench, pairs, tldr, reward or likelihood.")],
    answers: Annotated[str, typer.Argument(metavar="ANSWERS", help="File that `lossmith answer` wrote.")],
    model: Annotated[str, typer.Option(help="The judge at its endpoint; for reward and likelihood a model here.")],
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible address, http://127.0.0.1:8000/v1.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Answers to compare with; alpaca_eval:, tldr:, pairs: as in answer.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Calls under way at once.")] = 8,
    max_calls: Annotated[int | None, typer.Option(help="Most requests of this command, tries included.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of this command, read and written.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds per request.")] = 120.0,
    tries: Annotated[int, typer.Option(help="Tries of a call.")] = 6,
    temperature: Annotated[str, typer.Option(help="Of the judge, or default to leave it to the endpoint.")] = "0",
    reply_tokens: Annotated[
        int | None, typer.Option(help="Room for a reply; more for models that think first.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="How often everything is asked; needs a temperature.")] = 1,
    logprobs: Annotated[bool, typer.Option(help="Ask for log-probabilities of the choice.")] = True,
    difficulties: Annotated[Path | None, typer.Option(help="AlpacaEval's instruction_difficulty.csv.")] = None,
    gamed: Annotated[Path | None, typer.Option(help="AlpacaEval's df_gamed.csv.")] = None,
    label: Annotated[int | None, typer.Option(help="Class of a reward classifier that is scored.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Store of replies, may be shared; OUT/replies.sqlite.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstraps.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Results folder.")] = None,
    device: Device = None,
) -> None:
    """Grade answers (mt_bench) or compare them with a baseline's (pairs, tldr), with intervals.

    The key is read from LOSSMITH_JUDGE_API_KEY, else OPENAI_API_KEY, and from nowhere else; a local address needs none.
    Every reply is stored: the same command continues and asks nothing twice. Without an endpoint: reward, likelihood.
    """
    require_train_extra()
    _check_options(context)
    options = {name: value for name, value in locals().items() if name in _SETTINGS}
    folder = (out or Path("runs") / f"{what}-{folder_name(answers)}").expanduser()
    console = Console()
    with _stoppable("Replies are kept"):
        results = _results(options, folder, device, console)
    if any(result.not_asked for result in results):
        raise typer.Exit(1)


_SETTINGS = (
    "what", "answers", "baseline", "model", "base_url", "concurrency", "max_calls", "max_tokens", "timeout", "tries",
    "temperature", "reply_tokens", "repeats", "logprobs", "difficulties", "gamed", "label", "cache", "seed",
)  # fmt: skip
_IDENTITY = ("what", "model", "temperature", "reply_tokens", "repeats", "logprobs", "label", "seed")
"""Settings that a result depends on, beside the contents of the files; where and how fast it is asked are none."""


def _check_options(context: typer.Context) -> None:
    """Refuse a kind that there is not, what it lacks, and options that nothing would read."""
    what, given = context.params["what"], context.params
    if what not in KINDS:
        raise ConfigurationError(f"`WHAT` must be one of {', '.join(KINDS)}, got '{what}'.")
    for name, kinds in READ_BY.items():
        source = context.get_parameter_source(name)
        if what not in kinds and source is not None and source.name == "COMMANDLINE":
            raise ConfigurationError(
                f"`--{name.replace('_', '-')}` is for {' and '.join(kinds)}, and nothing reads it for {what}: leave it "
                f"out."
            )
    if what != "mt_bench" and given["baseline"] is None:
        raise ConfigurationError(f"`lossmith judge {what}` compares with a baseline: give --baseline ANSWERS.")
    if what in AT_ENDPOINT and given["base_url"] is None:
        raise ConfigurationError("`--base-url` must say where the judge is, such as http://127.0.0.1:8000/v1.")


def _results(options: dict[str, Any], folder: Path, device: str | None, console: Console) -> list[Any]:
    """Judge, write the results into the folder, and say them."""
    from lossmith.evaluation.judging.sources import material_from
    from lossmith.evidence import check_writable
    from lossmith.integrations.models import resolve_model
    from lossmith.report.judging import check_same_settings, judging_lines, judging_notices, write_judging

    check_writable(folder, needed_mib=5)
    options = options | {"temperature": _temperature(options["temperature"])}
    material = material_from(
        options["answers"],
        options["baseline"],
        difficulties=options["difficulties"],
        gamed=options["gamed"],
        beside_baseline=options["what"] == "pairs",
    )
    here = resolve_model(options["model"]) if options["what"] in OFFLINE else None
    identity = {name: options[name] for name in _IDENTITY} | material.fingerprints()
    identity |= {"files of the model": here.fingerprint} if here is not None else {}
    check_same_settings(folder, identity)
    if here is not None:
        results, comparison, notices = _offline(options, material, here, device), None, []
    else:
        results, comparison, notices = _with_judge(options, material, folder, console)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    write_judging(folder, results, comparison, settings=settings, identity=identity)
    noticed = [*material.notices, *notices, *judging_notices(results)]
    for line in (*judging_lines(results, comparison), *(f"note: {notice}" for notice in noticed)):
        _say(console, line)
    _say(console, _cost(results) + f"Results: {folder / 'results.json'}")
    return results


def _with_judge(
    options: dict[str, Any], material: Any, folder: Path, console: Console
) -> tuple[list[Any], Any, list[str]]:
    """Results of a judge at an endpoint."""
    from lossmith.evaluation import judging
    from lossmith.report.live import BatchProgress

    endpoint = judging.Endpoint(options["base_url"], timeout_s=options["timeout"])
    budget = judging.Budget(max_calls=options["max_calls"], max_tokens=options["max_tokens"])
    store = options["cache"] or folder / "replies.sqlite"
    with endpoint, judging.CallCache(store.expanduser()) as cache, BatchProgress(console) as bar:

        def judge_of(name: str) -> Any:
            return judging.Judge(
                model=options["model"],
                endpoint=endpoint,
                cache=cache,
                budget=budget,
                concurrency=options["concurrency"],
                backoff=judging.Backoff(tries=options["tries"]),
                temperature=options["temperature"],
                reply_tokens=options["reply_tokens"],
                repeats=options["repeats"],
                logprobs=options["logprobs"],
                on_call=lambda done, total: bar.moved(name, done, total),
            )

        if options["what"] == "mt_bench":
            results, comparison, notices = _graded(material, judge_of, folder, options["seed"])
        else:
            results, comparison, notices = [_compared(options, material, judge_of("comparisons"), folder)], None, []
        return results, comparison, [*notices, *endpoint.notices]


def _compared(options: dict[str, Any], material: Any, judge: Any, folder: Path) -> Any:
    """Which of two answers the judge prefers."""
    from lossmith.evaluation.judging import judge_pairs

    with _kept_judgements(folder, [], material.answers.model):
        return judge_pairs(
            material.answers,
            material.baseline,
            judge,
            style=STYLES[options["what"]],
            seed=options["seed"],
            difficulties=material.difficulties,
            gamed=material.gamed,
        )


def _graded(material: Any, judge_of: Callable[[str], Any], folder: Path, seed: int) -> tuple[list[Any], Any, list[str]]:
    """MT-Bench's grades of one model or two, and their comparison, or why there is none."""
    from lossmith.evaluation import judging
    from lossmith.tasks.mt_bench import load_mt_bench

    questions, results = load_mt_bench(), list[Any]()
    if material.baseline is not None:
        judging.check_comparable(questions, material.answers, material.baseline)
    for own in (material.answers, material.baseline):
        if own is not None:
            with _kept_judgements(folder, results, own.model):
                results.append(judging.grade(questions, own, judge_of(own.model), seed=seed))
    if len(results) < 2:
        return results, None, []
    if any(result.not_asked for result in results):
        return results, None, ["no comparison with the baseline before all questions are asked."]
    try:
        return results, judging.compare_grades(*results, seed=seed), []
    except DataError as error:
        return results, None, [f"no comparison with the baseline: {error}"]


@contextmanager
def _kept_judgements(folder: Path, results: list[Any], model: str) -> Iterator[None]:
    """Inside, replies of a judge that gives no verdict at all are written all the same, beside those before."""
    from lossmith.evaluation.judging import NoVerdictError
    from lossmith.report.judging import write_judgements

    try:
        yield
    except NoVerdictError as error:
        write_judgements(folder, [*((done.model, done.judgements) for done in results), (model, error.judgements)])
        raise JudgeError(f"{error} Read them in {folder / 'judgements.jsonl'}.") from error


def _offline(options: dict[str, Any], material: Any, model: Any, device: str | None) -> list[Any]:
    """Results of a reward model or a likelihood, on this machine."""
    from lossmith.evaluation import judging
    from lossmith.integrations.causal_lm import load_causal_lm
    from lossmith.studies.run import pick_device

    files, place = (material.answers, material.baseline), pick_device(device or "auto")
    shared = {"name": options["model"], "seed": options["seed"]}
    if options["what"] == "likelihood":
        return [judging.likelihood_win_rate(*files, *load_causal_lm(model, device=place), **shared)]
    score = judging.load_reward(model, label=options["label"], device=place)
    return [judging.reward_win_rate(*files, score, **shared)]


def _temperature(text: str) -> float | None:
    if text == "default":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"`--temperature` must be a number or default, got '{text}'.") from None


def _cost(results: list[Any]) -> str:
    sent, tokens = sum(result.sent for result in results), sum(result.tokens for result in results)
    return f"{sent:,} requests and {tokens:,} tokens now. " if sent else ""


@contextmanager
def _stoppable(kept: str) -> Iterator[None]:
    """Inside, Ctrl-C ends the command with a sentence on what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print(f"Stopped. {kept}; the same command continues and repeats none.")
        raise typer.Exit(130) from None


def _say(console: Console, line: str) -> None:
    console.print(plain(line), markup=False, highlight=False, soft_wrap=True)
