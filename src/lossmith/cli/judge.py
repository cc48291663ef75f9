"""`lossmith answer` and `lossmith judge`: answers of a model to questions, and what a judge makes of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lossmith.cli.shared import Device, folder_name, plain, require_train_extra
from lossmith.errors import ConfigurationError, JudgeError

KINDS = ("mt_bench", "pairs", "tldr", "reward", "likelihood")
STYLES = {"pairs": "helpful", "tldr": "concise"}
OFFLINE = ("reward", "likelihood")


def answer(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="embedded: name, folder or hub id.")],
    questions: Annotated[str, typer.Option(help="mt_bench, alpaca_eval:FOLDER, or a file with turns or prompt.")],
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
    try:
        with BatchProgress(console) as bar:
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
    except KeyboardInterrupt:
        raise _stopped("Finished answers are kept") from None
    _say(console, f"{written.answers} questions are answered in {out}, {written.kept} of them before.")
    if written.unfinished:
        _say(console, f"note: {written.unfinished} answers were cut off at {max_new_tokens} tokens.")
    if written.cut_prompts:
        _say(console, f"note: {written.cut_prompts} prompts were cut on the left to fit the model.")


def judge(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="mt_bench, pairs, tldr, reward or likelihood.")],
    answers: Annotated[str, typer.Argument(metavar="ANSWERS", help="File that `lossmith answer` wrote.")],
    model: Annotated[str, typer.Option(help="The judge at its endpoint; for reward and likelihood a model here.")],
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible address, http://127.0.0.1:8000/v1.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Answers to compare with; or alpaca_eval:FOLDER.")] = None,
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
    from lossmith.evidence import check_writable
    from lossmith.report.judging import judging_lines, judging_notices, write_judging

    if what not in KINDS:
        raise ConfigurationError(f"`WHAT` must be one of {', '.join(KINDS)}, got '{what}'.")
    if what != "mt_bench" and baseline is None:
        raise ConfigurationError(f"`lossmith judge {what}` compares with a baseline: give --baseline ANSWERS.")
    folder = (out or Path("runs") / f"{what}-{folder_name(answers)}").expanduser()
    options = {name: value for name, value in locals().items() if name in _SETTINGS}
    console = Console()
    check_writable(folder, needed_mib=5)
    try:
        if what in OFFLINE:
            results, comparison, notices = _offline(options, device)
        else:
            results, comparison, notices = _with_judge(options, folder, console)
    except KeyboardInterrupt:
        raise _stopped("Replies are kept") from None
    write_judging(
        folder, results, comparison, settings={k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    )
    for line in judging_lines(results, comparison):
        _say(console, line)
    for notice in [*notices, *judging_notices(results)]:
        _say(console, f"note: {notice}")
    _say(console, _cost(results) + f"Results: {folder / 'results.json'}")
    if any(result.not_asked for result in results):
        raise typer.Exit(1)


_SETTINGS = (
    "what", "answers", "baseline", "model", "base_url", "concurrency", "max_calls", "max_tokens", "timeout", "tries",
    "temperature", "reply_tokens", "repeats", "logprobs", "difficulties", "gamed", "label", "cache", "seed",
)  # fmt: skip


def _with_judge(options: dict[str, Any], folder: Path, console: Console) -> tuple[list[Any], Any, list[str]]:
    """Results of a judge at an endpoint."""
    from lossmith.evaluation import judging
    from lossmith.evaluation.judging.sources import answers_from
    from lossmith.report.live import BatchProgress

    if options["base_url"] is None:
        raise ConfigurationError("`--base-url` must say where the judge is, such as http://127.0.0.1:8000/v1.")
    answers = answers_from(options["answers"])
    baseline = None if options["baseline"] is None else answers_from(options["baseline"])
    tables, notices = _instruction_tables(options)
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
                temperature=_temperature(options["temperature"]),
                reply_tokens=options["reply_tokens"],
                repeats=options["repeats"],
                logprobs=options["logprobs"],
                on_call=lambda done, total: bar.moved(name, done, total),
            )

        if options["what"] == "mt_bench":
            results, comparison = _graded(answers, baseline, judge_of, folder, options["seed"])
            return results, comparison, endpoint.notices
        assert baseline is not None
        style = STYLES[options["what"]]
        with _kept_judgements(folder, [], answers.model):
            judge = judge_of("comparisons")
            result = judging.judge_pairs(answers, baseline, judge, style=style, seed=options["seed"], **tables)
        return [result], None, [*notices, *endpoint.notices]


def _instruction_tables(options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """AlpacaEval's tables of instructions, those named or those beside the baseline; and what was found unasked."""
    from lossmith.evaluation.judging.sources import DIFFICULTIES, GAMED, beside, read_difficulties, read_gamed

    paths = {"difficulties": options["difficulties"], "gamed": options["gamed"]}
    found = {"difficulties": beside(options["baseline"], DIFFICULTIES), "gamed": beside(options["baseline"], GAMED)}
    if options["what"] == "pairs" and paths["difficulties"] is None and found["difficulties"] is not None:
        # Gamed rows are told apart by difficulties: the two are taken together.
        paths = {name: paths[name] or path for name, path in found.items()}
    readers = {"difficulties": read_difficulties, "gamed": read_gamed}
    tables = {name: path and readers[name](path.expanduser()) for name, path in paths.items()}
    unasked = [path for name, path in paths.items() if path is not None and path != options[name]]
    return tables, [f"read {path}, which lies beside the instructions" for path in unasked]


def _graded(
    answers: Any, baseline: Any, judge_of: Callable[[str], Any], folder: Path, seed: int
) -> tuple[list[Any], Any]:
    """MT-Bench's grades of one model or two, and their comparison where both were asked in full."""
    from lossmith.evaluation import judging
    from lossmith.tasks.mt_bench import load_mt_bench

    questions, results = load_mt_bench(), list[Any]()
    for own in (answers, baseline):
        if own is not None:
            with _kept_judgements(folder, results, own.model):
                results.append(judging.grade(questions, own, judge_of(own.model), seed=seed))
    whole = len(results) == 2 and not any(result.not_asked for result in results)
    return results, judging.compare_grades(*results, seed=seed) if whole else None


@contextmanager
def _kept_judgements(folder: Path, results: list[Any], model: str) -> Iterator[None]:
    """Inside, replies of a judge that gives no verdict at all are written all the same, beside those before."""
    from lossmith.evaluation.judging import NoVerdictError
    from lossmith.report.judging import write_judgements

    try:
        yield
    except NoVerdictError as error:
        done = {result.model: result.judgements for result in results}
        write_judgements(folder, done | {model: error.judgements})
        raise JudgeError(f"{error} Read them in {folder / 'judgements.jsonl'}.") from error


def _offline(options: dict[str, Any], device: str | None) -> tuple[list[Any], None, list[str]]:
    """Results of a reward model or a likelihood, on this machine."""
    from lossmith.evaluation import judging
    from lossmith.evaluation.judging.sources import answers_from
    from lossmith.integrations.causal_lm import load_causal_lm
    from lossmith.integrations.models import resolve_model
    from lossmith.studies.run import pick_device

    answers, baseline = answers_from(options["answers"]), answers_from(options["baseline"])
    name, place = options["model"], pick_device(device or "auto")
    if options["what"] == "likelihood":
        network, tokenizer = load_causal_lm(resolve_model(name), device=place)
        result = judging.likelihood_win_rate(answers, baseline, network, tokenizer, name=name, seed=options["seed"])
    else:
        score = judging.load_reward(resolve_model(name), label=options["label"], device=place)
        result = judging.reward_win_rate(answers, baseline, score, name=name, seed=options["seed"])
    return [result], None, []


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


def _stopped(kept: str) -> typer.Exit:
    Console(stderr=True).print(f"Stopped. {kept}; the same command continues and repeats none.")
    return typer.Exit(130)


def _say(console: Console, line: str) -> None:
    console.print(plain(line), markup=False, highlight=False, soft_wrap=True)
