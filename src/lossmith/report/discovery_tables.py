"""The tables of a discovery's report: what came in, what stayed, what it cost, and what may be said."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lossmith.discovery.costs import RESOURCES, Cost, show_amount
from lossmith.discovery.history import ClaimRow, History
from lossmith.discovery.program import one_line
from lossmith.discovery.race.confirmation import twin_floor
from lossmith.discovery.race.halving import RETESTED
from lossmith.discovery.rounds import HUMAN
from lossmith.discovery.rungs.base import Split
from lossmith.evidence import paired_t


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table of texts; columns named in `numbers` are aligned right."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()


def grid(headers: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()) -> Grid:
    """A table from anything that has a text."""
    told = tuple(tuple(str(cell) for cell in row) for row in rows)
    return Grid(headers=tuple(headers), rows=told, numbers=frozenset(numbers))


def number(value: float | None, digits: int = 3) -> str:
    """A difference with its sign; a dash where there is none.

    Example:
        >>> number(0.01234), number(-2.0), number(None), number(float("nan"))
        ('+0.0123', '-2', '–', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.{digits}g}"


def interval(mean: float | None, low: float | None, high: float | None) -> str:
    """A mean with its interval.

    Example:
        >>> interval(0.1, 0.05, 0.15)
        '+0.1 [+0.05, +0.15]'
    """
    return "–" if mean is None else f"{number(mean)} [{number(low)}, {number(high)}]"


def funnel_table(history: History) -> Grid:
    """How many came to each stage, and what the stage cost."""
    kinds = Counter(each.kind for each in history.proposals)
    total = len(history.proposals)
    rows: list[tuple[object, ...]] = [
        ("proposed", total, "", cost_words(history.spend.get("proposer"))),
        ("refused by the checks", kinds["rejected"], share(kinds["rejected"], total), ""),
        ("duplicates", kinds["duplicate"], share(kinds["duplicate"], total), ""),
        ("admitted", kinds["admitted"], share(kinds["admitted"], total), ""),
    ]
    for rung in history.rungs:
        decided = Counter(each.kind for each in history.decisions if each.rung == rung and each.kind not in RETESTED)
        measured = sum(decided.values())
        words = f"measured on {rung}"
        cost = cost_words(history.spend.get(f"rung/{rung}/search"))
        rows.append((words, measured, share(measured, total), cost))
        for kind, said in (("promoted", "kept"), ("audited", "rejected, promoted anyway by lot"), ("failed", "broke")):
            if decided[kind]:
                rows.append((f"– {said}", decided[kind], share(decided[kind], measured), ""))
    lost = abandoned(history)
    if lost:
        rows.append(("admitted, judged by no rung", lost, share(lost, total), ""))
    confirmed = [cost for kind, cost in history.spend.items() if kind.endswith("/confirmation")]
    whole = sum(confirmed, Cost())
    rows.append(("confirmed on fresh ground", len(history.verdicts), "", cost_words(whole) if confirmed else ""))
    rows.append(("announced", len(history.announced()), "", ""))
    return grid(("stage", "programs", "share", "cost"), rows, (1, 2))


def abandoned(history: History) -> int:
    """Candidates of a round that the budget, or a session's end, broke off before any rung judged them."""
    judged = {each.program for each in history.decisions if each.kind != "unmeasured"}
    return sum(key not in judged for key in history.candidates)


def share(part: int, whole: int) -> str:
    """A percentage; nothing where there is no whole."""
    return f"{100 * part / whole:.0f}%" if whole else ""


def cost_words(cost: Cost | None) -> str:
    """A cost for people."""
    told = {} if cost is None else {name: show_amount(name, value) for name, value in cost.to_dict().items()}
    if "wall_seconds" in told:
        told["wall_seconds"] += " on the clock"
    return ", ".join(told.values())


def refusals_table(history: History) -> Grid:
    """Why candidates were refused, most frequent first, each with one reason as it was told."""
    reasons = {
        each.category: f"{each.name}: {each.reason}" if each.name else each.reason
        for each in reversed(history.proposals)
        if each.kind == "rejected"
    }
    counts = Counter(each.category for each in history.proposals if each.kind == "rejected")
    rows = [(category, count, cut_short(reasons[category], 200)) for category, count in counts.most_common()]
    return grid(("category", "times", "for example"), rows, (1,))


def lineage_table(history: History, keys: Sequence[str]) -> Grid:
    """The programs that matter and their ancestors, with verdicts."""
    by_key = {each.key: each for each in reversed(history.proposals) if each.kind == "admitted"}
    waiting, seen = list(keys), {}
    while waiting:
        key = waiting.pop(0)
        if key in seen or key not in history.programs:
            continue
        seen[key] = by_key.get(key)
        waiting += [] if seen[key] is None else list(seen[key].parents)
    rows = []
    for key, each in sorted(seen.items(), key=lambda item: history.stored[item[0]].step):
        stored = history.stored[key]
        parents = ", ".join(parent[:8] for parent in each.parents) if each is not None else ""
        rows.append(
            (
                history.name_of(key),
                stored.step + 1 if stored.step >= 0 else "start",
                stored.proposer or stored.role,
                parents or "–",
                fate_of(history, key),
                cut_short(one_line(history.programs[key]), 160),
            )
        )
    return grid(("program", "round", "from", "parents", "verdict", "formula"), rows)


def fate_of(history: History, key: str) -> str:
    """What became of a program: `announced`, `elite`, or where its way ended."""
    verdict = next((each for each in history.verdicts if each.program == key), None)
    if verdict is not None:
        return "announced" if verdict.announced else "confirmed, not announced"
    if any(each.program == key for each in history.elites()):
        return "elite"
    own = [each for each in history.decisions if each.program == key and each.kind not in RETESTED]
    if not own:
        return "–"
    # Decisions are sorted by the name of the rung: what counts is the highest one.
    last = max(own, key=lambda each: history.rungs.index(each.rung))
    return f"{last.kind} on {last.rung}, {number(last.mean)}"


def people_table(history: History) -> Grid:
    """What became of the files that people gave."""
    rows = []
    for each in history.proposals:
        if each.proposer.split("-")[0] == HUMAN:
            key = each.key if each.kind == "admitted" else None
            became = f"{each.kind}: {each.category}" if key is None else fate_of(history, key)
            rows.append((f"{each.name}.py", "–" if key is None else key[:8], became))
    return grid(("file", "program", "what became of it"), rows)


def cut_short(text: str, length: int) -> str:
    """The text, or its beginning with an ellipsis.

    Example:
        >>> cut_short("abcdef", 6), cut_short("abcdefg", 6)
        ('abcdef', 'abcde…')
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def evidence_table(history: History, key: str) -> Grid:
    """Everything that was measured of one program against the control."""
    rows = []
    for (rung, split), _ in history.evaluations.items():
        data = history.data(rung, split)
        control, own = data.pairs(key)
        if not own and key not in data.failed:
            continue
        if key in data.failed:
            rows.append((rung, split, "–", f"broke ({data.failed[key]})", "–", "–"))
            continue
        found = paired_t(control, own)
        shrunken = history.estimates(rung).get(key) if split == "search" else None
        rows.append(
            (
                rung,
                split,
                len(own),
                interval(found.difference, found.low, found.high),
                "–" if shrunken is None else f"{number(shrunken.mean)} ± {shrunken.sd:.2g}",
                f"{found.wins}/{found.losses}/{found.ties}",
            )
        )
    return grid(("rung", "split", "blocks", "difference to control, 95%", "shrunken", "won/lost/tied"), rows, (2,))


def ground_name(claim: ClaimRow) -> str:
    """The ground of a claim, marked where the search never saw it."""
    return f"{claim.ground} (unseen)" if claim.unseen and "unseen" not in claim.ground else claim.ground


def claims_table(history: History) -> Grid:
    """What the confirmation found."""
    verdicts = {each.program: each for each in history.verdicts}
    rows = []
    for each in sorted(history.claims, key=lambda each: verdicts[each.program].rank):
        verdict = verdicts[each.program]
        rows.append(
            (
                each.program[:8],
                ground_name(each),
                each.blocks,
                interval(each.difference, each.low, each.high),
                "–" if each.p_value is None else f"{each.p_value:.3g}",
                f"{verdict.p_holm:.3g}",
                floor_words(history, each.ground, "confirmation"),
                "announced" if verdict.announced else "not announced",
            )
        )
    headers = ("program", "ground", "blocks", "difference, 95%", "p", "p of all (Holm)", "noise floor, 95%", "claim")
    return grid(headers, rows, (2, 4, 5))


def floor_words(history: History, rung: str, split: Split) -> str:
    """The control's twin against the control: a paired difference where there is no effect."""
    floor = twin_floor(history.data(rung, split))
    return "–" if floor is None else interval(floor.difference, floor.low, floor.high)


def audit_table(history: History) -> Grid:
    """How good each rung is at telling what the next one would keep."""
    rows = []
    for each in history.audits():
        rate = "–" if math.isnan(each.rate) else f"{100 * each.rate:.0f}% [{100 * each.low:.0f}, {100 * each.high:.0f}]"
        audited = f"{each.audited} of {each.rejected}"
        tau, naive = (
            "–" if math.isnan(value) else f"{value:.2f}" for value in (each.rank_correlation, each.survivors_only)
        )
        rows.append((f"{each.rung} → {each.next_rung}", audited, rate, tau, naive, each.programs))
    headers = (
        "rung",
        "rejects measured by lot",
        "wrongly rejected, 95%",
        "rank correlation",
        "among survivors only",
        "programs",
    )
    return grid(headers, rows, (2, 3, 4, 5))


_MUST_BE = {"good": "better", "disguised": "equal", "bad": "worse"}


def canaries_table(history: History) -> Grid:
    """Programs of known worth, and what the rungs made of them."""
    rows = [
        (each.name, _MUST_BE[each.kind], each.rung, each.blocks, interval(each.mean, each.low, each.high), each.state)
        for each in history.canaries()
    ]
    rows += [
        (name, "refused", "the checks", "–", f"refused as {said['category']}", _cheat_state(said["category"]))
        for name, said in (history.cheats or {}).items()
    ]
    return grid(("canary", "must be", "where", "blocks", "difference, 95%", "state"), rows, (3,))


def _cheat_state(category: str) -> str:
    # Refused for anything but its gradient (an unknown function, say), it does not show that cheats are caught.
    return "as expected" if category == "wrong-sign" else "refused for another reason"


def canary_notes(history: History) -> list[str]:
    """What a reader must know of the canaries that the run has, and of those that it has not."""
    notes = [
        "Programs of known worth ran in the same blocks, one a block in turn. One that is off by more than chance "
        'allows stops the run; "not yet known" is an interval that does not decide.'
    ]
    if history.cheats:
        notes.append(
            "The cheating one has the control's values and a gradient that goes the wrong way; it met the checks "
            "before the first round, and one that is let through stops the run."
        )
    elif history.cheats is None:
        notes.append("This run did not keep what the checks said of a cheating canary: it was made before runs did.")
    if not any(each.name == "known-good" for each in history.stored.values() if each.role == "canary"):
        notes.append(
            "There is no known-good canary: one is known for our own worlds, whose labels are wrong at a known rate, "
            "and this run trains on other data, where nobody knows a better loss beforehand. That a rung can see a "
            "better loss is therefore not shown here."
        )
    return notes


def spend_table(history: History) -> Grid:
    """The ledger."""
    used = [name for name in RESOURCES if any(getattr(cost, name) for cost in history.spend.values())]
    rows = [
        (kind, *(_bare(name, getattr(cost, name)) if getattr(cost, name) else "–" for name in used))
        for kind, cost in history.spend.items()
    ]
    headers = (
        "what",
        *(name.replace("_usd", "").replace("_seconds", " time").replace("wall", "clock") for name in used),
    )
    return grid(headers, rows, range(1, len(used) + 1))


def _bare(resource: str, amount: float) -> str:
    """An amount under a heading that names the resource already."""
    return show_amount(resource, amount).removesuffix(f" {resource}").removesuffix(" of device time")


def _shown_on(history: History, claim: ClaimRow) -> str:
    """What a finalist that was not announced has shown on a ground."""
    if claim.difference is not None:
        return f"its difference is {interval(claim.difference, claim.low, claim.high)}"
    broke = claim.program in history.data(claim.ground, "confirmation").failed
    return "it broke in training" if broke else "the machine failed, so that it has shown nothing there"


def negatives(history: History, names: Mapping[str, str] | None = None) -> list[str]:
    """What was tried in vain, in sentences."""
    said = []
    if history.confirmed and not history.announced():
        many = len(history.verdicts)
        said.append(
            f"Nothing is claimed: {many} finalist{'s' if many != 1 else ''} met the control on fresh ground, none was "
            "shown to be better on every ground."
            if many
            else "Nothing is claimed: no elite of the search was better than the control by enough to be confirmed."
        )
    for each in history.verdicts:
        if not each.announced:
            grounds = [claim for claim in history.claims if claim.program == each.program]
            worst = min(grounds, key=lambda claim: -math.inf if claim.low is None else claim.low, default=None)
            where = "" if worst is None else f": on {worst.ground} {_shown_on(history, worst)}"
            left = history.not_asked(each.program)
            were = "was" if len(left) == 1 else "were"
            rest = f" {', '.join(left)} could not have changed that, and {were} not asked." if left and grounds else ""
            said.append(f"{each.program[:8]} was a finalist and is not announced (p {each.p_holm:.2g}){where}.{rest}")
    broken = {each.program for each in history.decisions if each.kind == "failed"}
    if broken:
        said.append(
            f"{len(broken)} admitted programs broke in training: {', '.join(key[:8] for key in list(broken)[:8])}."
        )
    for audit in history.audits():
        if not math.isnan(audit.rank_correlation) and audit.rank_correlation < 0.2:
            said.append(
                f"Rung {audit.rung} says little about {audit.next_rung}: rank correlation "
                f"{audit.rank_correlation:.2f} over {audit.programs} programs."
            )
    return said
