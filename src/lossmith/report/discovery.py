"""The page of a discovery: one HTML file that needs nothing but itself."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmith.discovery.describe import Description, describe_candidate
from lossmith.discovery.ending import abandoned_words
from lossmith.discovery.history import History, open_history
from lossmith.discovery.identity import DUPLICATE, NEIGHBOUR
from lossmith.discovery.program import one_line
from lossmith.evidence.folders import cannot_write
from lossmith.report.discovery_arms import arm_notes, proposers_table
from lossmith.report.discovery_tables import (
    Grid,
    audit_table,
    canaries_table,
    canary_notes,
    claims_table,
    evidence_table,
    fate_of,
    funnel_table,
    ground_name,
    interval,
    lineage_table,
    negatives,
    people_table,
    refusals_table,
    spend_table,
)
from lossmith.report.provenance import flat_settings

_REASONS = {"rounds": "all rounds were done", "budget": "the budget carries no other round beside the confirmation"}
SHOWN = 6
"""Programs that get a section of their own."""


@dataclass(frozen=True, kw_only=True)
class ProgramPart:
    """One program's section."""

    key: str
    title: str
    description: Description
    evidence: Grid
    figure: Any
    svg: Any


def write_discovery(folder: Path | str) -> Path:
    """Write the report of a run into its folder, and return the path of its page.

    Writes `discovery.html` and its figures as PNG. Each file is whole or absent; it may be written while a run goes on.

    Raises:
        EvidenceError: If the folder holds no run, or cannot be written.
        MissingExtraError: If matplotlib or jinja2 is not installed.
    """
    from lossmith._extras import require

    for package in ("matplotlib", "jinja2"):
        require(package, extra="train", purpose="write a report")
    from lossmith.explain.canvas import png_bytes
    from lossmith.report.discovery_figures import discovery_figures
    from lossmith.report.write import write_files

    history = open_history(folder)
    shown = shown_programs(history)
    figures = discovery_figures(history, shown)
    parts = [_part(history, place, key) for place, key in enumerate(shown)]
    page = render_discovery(history, figures, parts)
    drawn = [*figures, *(part.figure for part in parts if part.figure is not None)]
    files = {f"{figure.name}.png": png_bytes(figure.figure) for figure in drawn}
    try:
        write_files(history.folder, files | {"discovery.html": page.encode("utf-8", "replace")})
    except OSError as error:
        raise cannot_write(history.folder, error) from error
    return history.folder / "discovery.html"


def shown_programs(history: History) -> list[str]:
    """Announced programs, then finalists, then elites; at most `SHOWN`."""
    found = [*history.announced(), *(each.program for each in history.verdicts)]
    return list(dict.fromkeys([*found, *(each.program for each in history.elites())]))[:SHOWN]


def answers(history: History) -> list[str]:
    """The run in a few sentences."""
    lines = []
    for key in history.announced():
        grounds = [each for each in history.claims if each.program == key]
        told = "; ".join(f"{ground_name(each)} {interval(each.difference, each.low, each.high)}" for each in grounds)
        lines.append(
            f"{key[:8]} is better than the control on every fresh ground: {told}, in the grounds' own units. "
            f"{_relative(history, key)}".rstrip()
        )
    if lines and history.scope:
        lines.append(history.scope)
    if not lines and history.closed is None:
        lines.append(f"The run is not finished: nothing is claimed yet. {_how_to_go_on(history)}")
    elif not lines and not history.confirmed:
        lines.append(f"The confirmation is not finished: nothing is claimed yet. {_how_to_go_on(history)}")
    elif not lines and history.verdicts:
        lines.append(
            "Nothing was shown to beat the control: no finalist is better on every fresh ground at the level of "
            f"{history.race.significance:g}."
        )
    elif not lines:
        lines.append(
            "Nothing was shown to beat the control: no elite of the search was better by enough to be confirmed."
        )
    measured, rounds = sum(len(rows) for rows in history.evaluations.values()), history.rounds
    lines.append(
        f"{len(history.proposals)} proposals, {len(history.candidates)} admitted programs, {measured} evaluations in "
        f"{rounds} round{'' if rounds == 1 else 's'}{_played(history)}{_why(history)}."
    )
    return lines


def _relative(history: History, key: str) -> str:
    """The closest known loss as a sentence; empty where there is none."""
    relatives = describe_candidate(history.programs[key], history.family, name=key[:8]).relatives
    if not relatives:
        return ""
    closest = relatives[0]
    if closest.distance < DUPLICATE:
        return f"It is {closest.loss}, a known loss at that strength, but for its scale."
    near = ", a neighbour" if closest.distance < NEIGHBOUR else ""
    return f"Its closest known loss is {closest.loss}, at distance {closest.distance:.2g}{near}."


def _how_to_go_on(history: History) -> str:
    """What a run that is not finished waits for, by how its last session ended."""
    if history.ended == "budget":
        return "Its budget does not carry what comes next: the same command with more --budget goes on with it."
    if history.ended == "machine":
        return (
            "Its last session ended because the machine, or a proposer's server, failed: the same command goes on "
            "with it."
        )
    if history.ended == "harness":
        return (
            "Its last session ended because a check of itself failed, as it will again until what the rung measures is "
            "mended: the message of that session says which."
        )
    return "It is running, or was ended in its middle: then the same command goes on with it."


def _played(history: History) -> str:
    return f" and a play-off of {history.playoff_blocks} blocks" if history.playoff_blocks else ""


def _why(history: History) -> str:
    if history.closed is None:
        return ""
    reason = history.closed["reason"]
    lost = history.closed.get("abandoned")
    begun = "" if lost is None else f"; a further round was begun and abandoned: {abandoned_words(lost)}"
    return f"; the search ended because {_REASONS.get(reason, reason)}{begun}"


def _part(history: History, place: int, key: str) -> ProgramPart:
    from markupsafe import Markup

    from lossmith.report.discovery_figures import curves_figure
    from lossmith.report.html import figure_svg

    name = history.name_of(key)
    description = describe_candidate(history.programs[key], history.family, name=key[:8])
    figure = curves_figure(place, key[:8], description) if description.curves else None
    return ProgramPart(
        key=key,
        title=f"{name} ({fate_of(history, key)})",
        description=description,
        evidence=evidence_table(history, key),
        figure=figure,
        svg=None if figure is None else Markup(figure_svg(figure)),
    )


def render_discovery(history: History, figures: Sequence[Any], parts: Sequence[ProgramPart]) -> str:
    """The whole page; every foreign text in it is escaped, and equal runs give equal pages."""
    from markupsafe import Markup

    from lossmith.report.html import figure_svg, page_environment, script_hash, script_json

    environment = page_environment()
    script = environment.get_template("report.js").render()
    lineage, proposers, evidence = ((figure, Markup(figure_svg(figure))) for figure in figures)
    data = {
        "settings": dict(history.settings),
        "programs": {key: program.to_json() for key, program in history.programs.items()},
        "claims": [vars(each) for each in history.claims],
        "verdicts": [vars(each) for each in history.verdicts],
        "decisions": [vars(each) for each in history.decisions],
    }
    return environment.get_template("discovery.html.j2").render(
        title=f"Is there a better {history.family} loss?",
        history=history,
        control=one_line(history.programs[history.control]),
        answers=answers(history),
        negatives=negatives(history),
        people=people_table(history),
        claims=claims_table(history),
        funnel=funnel_table(history),
        refusals=refusals_table(history),
        lineage=lineage,
        lineage_rows=lineage_table(history, [part.key for part in parts]),
        proposers=proposers,
        proposer_rows=proposers_table(history),
        arm_notes=arm_notes(history),
        evidence=evidence,
        parts=parts,
        audit=audit_table(history),
        canaries=canaries_table(history),
        canary_notes=canary_notes(history),
        spend=spend_table(history),
        settings=flat_settings(dict(history.settings)),
        commands=commands(history),
        data=Markup(script_json(data)),
        script=Markup(script),
        script_hash=script_hash(script),
        style=Markup(environment.get_template("report.css").render()),
    )


def commands(history: History) -> list[str]:
    """Command lines that made the run, make its decisions again, and take a program out of it."""
    folder = str(history.folder)
    best = (history.announced() or [each.program for each in history.elites()] or [""])[0][:8]
    lines = [*history.commands, *(shlex.join(["lossmith", "discover", word, folder]) for word in ("replay", "report"))]
    return [*lines, shlex.join(["lossmith", "discover", "export", folder, best])] if best else lines
