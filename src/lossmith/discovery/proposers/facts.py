"""What a prompt tells of a program: canonical code, slopes along the margin, tails, closest loss, estimate."""

from collections.abc import Mapping, Sequence

import numpy as np

from lossmith.discovery.identity import TRAINED
from lossmith.discovery.program import Program, ProgramError, order, to_python
from lossmith.discovery.program.arrays import Array
from lossmith.discovery.program.differentiate import value_and_gradients
from lossmith.discovery.proposers.base import Standing
from lossmith.discovery.proposers.trusted import plain_category

GRID = {
    "preference": (-300.0, -100.0, -30.0, -10.0, -3.0, 0.0, 3.0, 10.0, 30.0, 100.0, 300.0),
    "token": (-12.0, -6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0, 12.0),
    "metric": (-1.5, -0.8, -0.4, -0.1, 0.0, 0.1, 0.4, 0.8, 1.5),
}
"""Margins at which slopes are told: nats of rho, log-odds of the label, near minus far similarity."""
MARGIN = {
    "preference": "rho = (chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps)",
    "token": "the label's log-odds, token_logps - complement_logps",
    "metric": "the similarity to the own class minus that to the others",
}
INPUT_WORDS = {
    "chosen_logps": "log-probability of the chosen completion under the policy, summed over tokens, nats",
    "rejected_logps": "the same of the rejected completion",
    "ref_chosen_logps": "log-probability of the chosen completion under the frozen reference",
    "ref_rejected_logps": "the same of the rejected completion",
    "chosen_lengths": "tokens of the chosen completion",
    "rejected_lengths": "tokens of the rejected completion",
    "token_logps": "log-probability of the label",
    "complement_logps": "log(1 - p) of the label",
    "entropy": "entropy of the row, nats",
    "log_normalizer": "logsumexp of the logits",
    "max_logps": "log-probability of the likeliest class",
    "log_sum_sq_probs": "log of the sum of squared probabilities",
    "similarities": "cosine similarity of each anchor with each other row [anchors, rows]",
    "distances": "Euclidean distance of the normalised embeddings [anchors, rows]",
    "same": "True where the other row is of the anchor's class [anchors, rows]",
    "different": "True where it is of another class [anchors, rows]",
}


def code_of(program: Program, name: str = "loss") -> str:
    """The program as Python, with nothing of its author in it: names of locals and of the function are ours.

    Hyper-parameters are numbers here: their names are the author's words, but for `beta`.
    """
    named = {"beta": program.hyperparameters["beta"]} if set(program.hyperparameters) == {"beta"} else {}
    shown = program if named else Program(program.family, program.literal_root)
    return to_python(shown, name)


def slopes(program: Program) -> tuple[Array, Array]:
    """Margins and the derivative of an item's loss by the margin, in one batch of all margins."""
    grid = np.array(GRID[program.family])
    inputs = _inputs(program.family, grid)
    _, found = value_and_gradients(program.literal_root, inputs, TRAINED[program.family])
    zero = np.zeros(1)

    def of(name: str) -> Array:
        return np.asarray(found.get(name, zero))

    if program.family == "preference":
        along = (of("chosen_logps") - of("rejected_logps")) / 2
    elif program.family == "token":
        # d log p / dx = 1 - p and d log(1 - p) / dx = -p for the log-odds x.
        p = 1 / (1 + np.exp(-grid.reshape(1, -1, 1)))
        along = of("token_logps") * (1 - p) - of("complement_logps") * p
    else:
        by_row = of("similarities") - of("distances") / inputs["distances"]
        along = ((by_row * inputs["same"]).sum(2) - (by_row * inputs["different"]).sum(2)) / 2
    return grid, np.broadcast_to(along.reshape(-1), grid.shape)


def _inputs(family: str, grid: Array) -> dict[str, Array]:
    line = grid.reshape(1, -1, 1)
    if family == "preference":
        given = {"reward_shift": np.zeros((1, 1, 1))}
        for side, sign, base in (("chosen", 0.5, -420.0), ("rejected", -0.5, -450.0)):
            given[f"ref_{side}_logps"] = np.full(line.shape, base)
            given[f"{side}_logps"] = base + sign * line
            given[f"{side}_lengths"] = np.full(line.shape, 80.0)
        return given
    if family == "token":
        log_p, log_rest = -np.logaddexp(0, -line), -np.logaddexp(0, line)
        flat = {"entropy": 1.5, "top_20_entropy": 1.4, "log_normalizer": 12.0, "mean_logits": 0.0}
        flat |= {"mean_class_logps": -12.0, "log_sum_sq_probs": -1.2}
        given = {name: np.full(line.shape, value) for name, value in flat.items()}
        return given | {"token_logps": log_p, "complement_logps": log_rest, "max_logps": np.maximum(log_p, log_rest)}
    near = np.clip(line / 2, -0.99, 0.99)
    similarities = np.concatenate([near, -near], axis=2)
    same = np.broadcast_to(np.array([True, False]), similarities.shape)
    return {
        "similarities": similarities,
        "distances": np.sqrt(2 - 2 * similarities),
        "same": same,
        "different": ~same,
    }


def tail(values: Sequence[float]) -> str:
    """What the slope does toward an end: `values` from the middle outwards."""
    end, before, largest = values[-1], values[-2], max(abs(value) for value in values)
    if not np.isfinite(end):
        return "overflows"
    if largest == 0 or abs(end) < 1e-3 * largest:
        return "vanishes"
    ratio = abs(end) / max(abs(before), 1e-300)
    course = "stays" if 0.9 <= ratio <= 1.1 else "grows" if ratio > 1.1 else "fades"
    return course if end < 0 else f"{course}, pushing the margin down"


def describe(
    program: Program,
    *,
    nearest: tuple[str, float] | None = None,
    standing: Standing | None = None,
    metric: str = "fitness",
) -> str:
    """A paragraph of facts, the same for the same program and estimate.

    Args:
        program: What is described.
        nearest: The closest published loss and the distance to it.
        standing: What was measured, on the rung that it names.
        metric: What that rung measures: numbers of different rungs have different units.
    """
    lines = [code_of(program).rstrip()]
    try:
        grid, along = slopes(program)
        table = ", ".join(f"{x:g}: {slope:.3g}" for x, slope in zip(grid, along, strict=True))
        lines.append(f"Slope of the loss by the margin, at margin: {table}")
        middle = len(grid) // 2
        left, right = tail(along[middle::-1].tolist()), tail(along[middle:].tolist())
        lines.append(f"Toward wrong items the slope {left}; toward right ones it {right}.")
    except (KeyError, ValueError, ProgramError):
        pass
    if any(node.op in ("mean_batch", "var_batch", "std_batch") for node in order(program.root)):
        lines.append("It reads statistics of the batch.")
    if nearest is not None:
        lines.append(f"Closest published loss: {nearest[0]}, at distance {nearest[1]:.2g}.")
    if standing is not None:
        lines.append(
            f"Difference to the control in {metric} on the rung {standing.rung}: {standing.mean:+.3g}, interval "
            f"[{standing.low:.3g}, {standing.high:.3g}], in {standing.blocks} paired blocks; above 0 is better."
        )
    return "\n".join(lines)


def digest_of_failures(failures: Mapping[str, int], most: int = 8) -> str:
    """How often which check refused a candidate, the most frequent first."""
    counts: dict[str, int] = {}
    for category, count in failures.items():
        name = plain_category(category)
        counts[name] = counts.get(name, 0) + int(count)
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:most]
    return ", ".join(f"{name} {count} times" for name, count in ordered) or "none so far"
