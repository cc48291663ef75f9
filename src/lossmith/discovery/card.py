"""The card of an exported program, for people: what it is, how it was found, what it did, what may be said."""

import shlex
from collections.abc import Sequence

from lossmith.discovery.describe import Description
from lossmith.discovery.history import History
from lossmith.discovery.program import one_line, to_latex
from lossmith.discovery.race.confirmation import twin_floor
from lossmith.evidence import PairedComparison, paired_t
from lossmith.testing.report import Check


def card(history: History, key: str, name: str, description: Description, broken: Sequence[Check]) -> str:
    """What is known of the program, for people: what it is, how it was found, what it did, what may be said."""
    program = history.programs[key]
    verdict = next((each for each in history.verdicts if each.program == key), None)
    if verdict is not None and verdict.announced:
        claim = f"The run announced it: on every fresh ground it was better than the control. {history.scope}".rstrip()
    elif verdict is not None:
        claim = "The run took it to fresh ground and did **not** announce it: it was not shown to be better everywhere."
    else:
        claim = "The run did **not** confirm it: what follows was measured in the search, which flatters what it chose."
    lines = [
        f"# {titled(name)}",
        "",
        claim,
        "",
        f"- Formula: `{one_line(program)}`",
        f"- LaTeX: $\\ell = {to_latex(program)}$",
        f"- Family: {history.family}. {' '.join(description.sentences)}",
    ]
    if description.relatives:
        near = "; ".join(f"`{each.loss}` at {each.distance:.2g}" for each in description.relatives)
        lines.append(f"- Closest known losses: {near} (0 the same, below 0.05 neighbours).")
    lines += [f"- It does not keep the rule `{each.name}` of the library: {each.detail}" for each in broken]
    stored = history.stored[key]
    parents = next((each.parents for each in history.proposals if each.key == key and each.kind == "admitted"), ())
    by = f"- Found by {stored.proposer or stored.role} in round {stored.step + 1}"
    lines += [by + (f", from {', '.join(parent[:8] for parent in parents)}." if parents else "."), ""]
    lines += ["## Evidence", "", *_evidence(history, key), ""]
    lines += ["## Run", "", f"- Run: `{history.folder.name}`, seed {history.settings['seed']}, program `{key}`."]
    lines += [
        f"- Control: `{one_line(history.programs[history.control])}`.",
        f"- Rungs: {', '.join(history.rungs)}.",
        "",
    ]
    lines += _again(history, key, name)
    return "\n".join(lines)


def _again(history: History, key: str, name: str) -> list[str]:
    lines = ["## Again", ""]
    if history.commands:
        many = "These commands" if len(history.commands) > 1 else "This command"
        lines += [
            f"{many} made the run. In another folder (`--out`), with time enough and `--rounds {history.rounds}`, they "
            "make it again: how many rounds a budget in time carries depends on the machine.",
            "",
        ]
        lines += ["```", *history.commands, "```"]
    else:
        seed = history.settings["seed"]
        lines += [
            f"The run did not keep the command that made it; its seed is {seed}, its settings are in its database."
        ]
    trl = (
        f', as does `lossmith.integrations.trl.DPOTrainer(..., loss="{name}")`'
        if history.family == "preference"
        else ""
    )
    lines += [
        "",
        "Make every decision of the run again from its rows, write its page and this export, and load the objective "
        f"(the last line in this folder). Whatever takes a loss by name takes it after `import {name}_loss`{trl}.",
    ]
    lines += ["", "```", *replay_commands(history, key, name), "```", ""]
    return lines


def _evidence(history: History, key: str) -> list[str]:
    lines = [
        "| rung | split | fitness | blocks | difference to the control, 95% | noise floor, 95% |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    known = {**history.settings["rungs"], **history.settings["unseen"]}
    for rung, split in history.evaluations:
        data = history.data(rung, split)
        control, own = data.pairs(key)
        if own:
            floor = twin_floor(data)
            noise = "none" if floor is None else _interval(floor)
            told = f"{_interval(paired_t(control, own))} | {noise}"
            lines.append(f"| {rung} | {split} | {known[rung]['fitness']} | {len(own)} | {told} |")
    lines += ["", "The noise floor is the control trained again in the same blocks, in another order of the data."]
    verdict = next((each for each in history.verdicts if each.program == key), None)
    if verdict is not None:
        lines += ["", f"Claim over {_asked(history, key)}: p = {verdict.p_holm:.3g} (Holm over the finalists)."]
    return lines


def _asked(history: History, key: str) -> str:
    asked = [each.ground for each in history.claims if each.program == key]
    left = history.not_asked(key)
    if not left:
        return "all grounds"
    return f"{', '.join(asked)} ({', '.join(left)} could not have changed it)"


def _interval(found: PairedComparison) -> str:
    return f"{found.difference:+.4g} [{found.low:+.4g}, {found.high:+.4g}]"


def replay_commands(history: History, key: str, name: str) -> list[str]:
    """How to check and see the run, and how to train with the exported objective."""
    run = str(history.folder)
    return [
        shlex.join(["lossmith", "discover", "replay", run]),
        shlex.join(["lossmith", "discover", "report", run]),
        shlex.join(["lossmith", "discover", "export", run, key[:12], "--name", name]),
        f"python -c \"import {name}_loss, lossmith; print(lossmith.loss('{name}'))\"",
    ]


def titled(name: str) -> str:
    """A name as a title."""
    return name.replace("_", " ").capitalize()
