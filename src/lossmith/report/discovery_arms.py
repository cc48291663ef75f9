"""Proposers at equal cost: what each arm took, what came of it, and what random had for the same."""

import math
from dataclasses import dataclass

from lossmith.discovery.costs import Cost, show_amount
from lossmith.discovery.history import History
from lossmith.report.discovery_tables import Grid, grid, number, share

RANDOM = "random"
FEWEST = 5
"""Candidates on the last rung that each of two arms must have before they are compared: of fewer, the best is luck."""


@dataclass(frozen=True, kw_only=True)
class ArmPoint:
    """Where an arm stands after one more candidate."""

    seconds: float
    """Its proposals on the clock and the evaluations of its candidates on the device, so far."""
    reached: int
    """Candidates so far that were measured on the last rung."""
    best: float
    """Best shrunken difference among them; -inf where there is none."""


def arms_of(history: History) -> list[str]:
    """All arms, in the order in which they first answered."""
    return list(dict.fromkeys(each.proposer for each in history.proposals))


def path_of(history: History, arm: str) -> list[ArmPoint]:
    """What an arm had by when: each call costs its time on the clock, each candidate all of its evaluations."""
    known = history.estimates(history.rungs[-1])
    keys: dict[tuple[int, int], list[str]] = {(step, call): [] for step, call, name in history.asked if name == arm}
    for key in history.candidates:
        each = history.stored[key]
        if each.proposer == arm:
            keys.setdefault((each.step, each.call), []).append(key)
    seconds, reached, best, points = 0.0, 0, -math.inf, []
    for (step, call), found in sorted(keys.items()):
        seconds += history.asked.get((step, call, arm), Cost()).wall_seconds
        for key in found:
            seconds += history.device_seconds.get(key, 0.0)
            if key in known:
                reached, best = reached + 1, max(best, known[key].mean)
            points.append(ArmPoint(seconds=seconds, reached=reached, best=best))
        if not found:
            points.append(ArmPoint(seconds=seconds, reached=reached, best=best))
    return points


def best_by_cost(history: History, arm: str) -> list[tuple[float, float]]:
    """Seconds that an arm took, and its best shrunken difference on the last rung by then."""
    return [(each.seconds, each.best) for each in path_of(history, arm) if math.isfinite(each.best)]


def proposers_table(history: History) -> Grid:
    """Every arm: what it brought, all that it took, and what `random` had for as much."""
    arms = arms_of(history)
    paths = {arm: path_of(history, arm) for arm in arms}
    totals = {arm: sum((cost for (_, _, name), cost in history.asked.items() if name == arm), Cost()) for arm in arms}
    paid = [name for name in ("tokens", "money_usd") if any(getattr(total, name) for total in totals.values())]
    rows = []
    for arm in arms:
        own = [each for each in history.proposals if each.proposer == arm]
        admitted = [each for each in own if each.kind == "admitted"]
        far = [each.distance for each in admitted if each.distance is not None]
        evaluated = sum(history.device_seconds.get(each.key or "", 0.0) for each in admitted)
        rows.append(
            (
                arm,
                len(own),
                share(len(admitted), len(own)),
                f"{sum(far) / len(far):.2f}" if far else "–",
                show_amount("wall_seconds", totals[arm].wall_seconds) if history.asked else "not kept",
                *(show_amount(name, getattr(totals[arm], name)).removesuffix(f" {name}") for name in paid),
                show_amount("wall_seconds", evaluated),
                number(paths[arm][-1].best) if paths[arm] else "–",
                "–" if arm == RANDOM else against_random(history, paths[arm], paths.get(RANDOM, [])),
            )
        )
    headers = (
        "proposer",
        "proposals",
        "admitted",
        "mean distance to known losses",
        "time of proposals",
        *({"tokens": "tokens", "money_usd": "money"}[name] for name in paid),
        "time of evaluations",
        "best in all",
        "against random at equal cost",
    )
    return grid(headers, rows, range(1, len(headers) - 1))


def against_random(history: History, own: list[ArmPoint], random: list[ArmPoint]) -> str:
    """Both at the cost which both reached, with the candidates that they had on the last rung by then."""
    if not own or not random:
        return f"{'random' if own else 'it'} has no candidate: nothing to compare"
    common = min(own[-1].seconds, random[-1].seconds)
    mine, theirs = _at(own, common), _at(random, common)
    rung, when = history.rungs[-1], show_amount("wall_seconds", common)
    few = [f"{name} had {each.reached}" for name, each in (("it", mine), ("random", theirs)) if each.reached < FEWEST]
    if few:
        return f"too little to compare: by {when} {' and '.join(few)} on {rung}, and {FEWEST} are the fewest"
    return (
        f"{number(mine.best)} (of {mine.reached}) against {number(theirs.best)} (of {theirs.reached}), both at {when}"
    )


def _at(path: list[ArmPoint], seconds: float) -> ArmPoint:
    by_then = [each for each in path if each.seconds <= seconds * (1 + 1e-9)]
    return by_then[-1] if by_then else ArmPoint(seconds=0.0, reached=0, best=-math.inf)


def arm_notes(history: History) -> list[str]:
    """How the table is to be read."""
    notes = [
        "Equal cost is equal time: that of an arm's proposals on the clock, with all waiting for a model, and that of "
        "all evaluations of its candidates, later repetitions too. An arm and random are compared at the time which "
        f"both reached, by the best shrunken difference on {history.rungs[-1]}; in brackets the candidates measured "
        "there by then. Random and best-of-N are always among the arms, and one run is one draw."
    ]
    if any(cost.tokens or cost.money_usd for cost in history.asked.values()):
        notes.append("Tokens and money come on top of that time: random takes none of either.")
    if not history.asked:
        notes.append(
            "This run did not keep what the proposals of each arm took, so evaluations alone count here, and an arm "
            "that asks a model looks cheaper than it is."
        )
    return notes
