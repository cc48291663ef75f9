"""What one candidate is: its formula, its properties, its curve, and the closest known losses."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import lossmith.nn
from lossmith._numerics import safe_sqrt
from lossmith._typing import Tensor
from lossmith.discovery.checks import Candidate, Verdict, check, margin_line
from lossmith.discovery.checks.points import LINE, line
from lossmith.discovery.identity import Nearest, atlas, fingerprint
from lossmith.discovery.identity.probes import token_points
from lossmith.discovery.program import Program, one_line, to_latex, to_python, torch_function
from lossmith.discovery.program.differentiate import value_and_gradients
from lossmith.explain.curves import Curve, NoCurveError, loss_curve

PLACES = 199
MEANINGS = {
    "batch-coupled": "The loss of an item depends on the others in its batch.",
    "batch-size-dependent": "A batch that holds everything twice gives other losses: a spread has the divisor n - 1.",
    "detach": "Something is held constant, so its gradient need not be the slope of its value.",
    "grad-mismatch": "Its gradient is not the slope of its value: judge it by gradients, not by losses.",
    "half-nonfinite": "On bfloat16 or float16 inputs its value or gradient is not finite: give it float32.",
    "float32-nonfinite": "At the ends of what it can meet its value or gradient is not finite in float32, but in "
    "float64.",
    "reference-free": "It reads no reference.",
    "non-monotone": "On part of the line it pushes the margin down.",
    "convex": "It is convex along the margin.",
    "bounded": "It hardly grows at either end of the line, so single items cannot dominate.",
    "lowers-sure-labels": "A label that is all but certain is pushed down.",
    "saturating": "Pairs that are right by far have no pull left.",
}
"""Flag -> one sentence."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """Everything `lossmith discover explain` shows of one candidate."""

    verdict: Verdict
    formula: str | None
    """One line; None where it did not compile."""
    python: str | None
    latex: str | None
    sentences: tuple[str, ...]
    """Its properties, one sentence each."""
    relatives: tuple[Nearest, ...]
    """Closest published losses of different names, best first."""
    curves: tuple[Curve, ...]
    """Its own curve, then that of the closest loss over the same line, scaled and shifted to lie as near as it can
    (neither turns a gradient, and a distance sees neither); none where it did not compile."""

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curves, as plain values."""
        return {
            "verdict": self.verdict.to_dict(),
            "formula": self.formula,
            "python": self.python,
            "latex": self.latex,
            "properties": list(self.sentences),
            "relatives": [{"loss": each.loss, "distance": each.distance} for each in self.relatives],
        }


def describe_candidate(
    source: object, family: str = "preference", *, signature: str = "native", name: str = "candidate"
) -> Description:
    """Check a candidate and say what it is; a refused one is described as far as it goes.

    Args:
        source: Text or `Program`, as for `check`.
        family: `preference`, `token` or `metric`.
        signature: `native` or `discopop`.
        name: What to call it in pictures.
    """
    verdict = check(source, family, signature=signature, against="control")
    program = verdict.program
    if program is None:
        return Description(
            verdict=verdict, formula=None, python=None, latex=None, sentences=(), relatives=(), curves=()
        )
    found = fingerprint(program) if program.root.type == "item" else None
    relatives = tuple(atlas(program.family).ranked(found)) if found is not None else ()
    return Description(
        verdict=verdict,
        formula=one_line(program),
        python=to_python(program),
        latex=to_latex(program),
        sentences=_sentences(program, verdict),
        relatives=relatives,
        curves=_curves(program, name, relatives),
    )


def _sentences(program: Program, verdict: Verdict) -> tuple[str, ...]:
    said = [f"It reads {', '.join(f'`{name}`' for name in program.inputs) or 'nothing'}."]
    if program.hyperparameters:
        settings = ", ".join(f"`{name}` = {value:g}" for name, value in program.hyperparameters.items())
        said.append(f"Hyper-parameters: {settings}.")
    for flag in verdict.flags:
        if flag in MEANINGS:
            said.append(MEANINGS[flag])
        elif flag.startswith("unused:"):
            said.append(f"`{flag.removeprefix('unused:')}` is declared and not read.")
    return tuple(said)


def _curves(program: Program, name: str, relatives: tuple[Nearest, ...]) -> tuple[Curve, ...]:
    if program.root.type != "item" or not program.inputs:
        return ()
    own = {"preference": _pair_curve, "token": _token_curve, "metric": _anchor_curve}[program.family](program, name)
    if not all(np.isfinite(values).all() for values in (own.loss, own.gradient)):
        return ()
    beside = _known_curve(program.family, relatives[0].loss) if relatives else None
    return (own,) if beside is None or not np.allclose(beside.x, own.x) else (own, _laid_beside(own, beside))


def _laid_beside(own: Curve, known: Curve) -> Curve:
    """The known loss times the factor by which its gradients fit best, plus the constant by which its losses do."""
    slopes, theirs = np.array(own.gradient), np.array(known.gradient)
    factor = float(slopes @ theirs) / (float(theirs @ theirs) or 1.0)
    # One that pulls the other way along this line is shown as it is.
    if not np.isfinite(factor) or factor <= 0:
        return replace(known, x=own.x)
    shift = float(np.mean(np.array(own.loss) - factor * np.array(known.loss)))
    gradient = factor * theirs
    times = known.name if abs(factor - 1) < 0.005 else f"{factor:.3g} * {known.name}"
    size = float(np.ptp(own.loss)) or 1.0
    plus = "" if abs(shift) < 0.005 * size else f" {'+' if shift > 0 else '-'} {abs(shift):.3g}"
    target = known.implied_target
    return replace(
        known,
        name=f"{times}{plus}",
        x=own.x,
        loss=tuple((factor * np.array(known.loss) + shift).tolist()),
        gradient=tuple(gradient.tolist()),
        implied_target=None if target is None else tuple((np.array(own.x) - gradient).tolist()),
    )


def _pair_curve(program: Program, name: str) -> Curve:
    margins, losses, slopes = margin_line(Candidate(program))
    return _curve_of_pairs(name, margins, losses, slopes)


def _curve_of_pairs(name: str, margins: np.ndarray, losses: np.ndarray, slopes: np.ndarray) -> Curve:
    return Curve(
        name=name,
        x_name="log-ratio margin (nats)",
        x=tuple(margins.tolist()),
        loss=tuple(losses.tolist()),
        gradient_name="the margin",
        gradient=tuple(slopes.tolist()),
        implied_target=None,
        setting="One pair of 80 tokens a side, half of the margin lifts the chosen completion; for losses coupled over "
        "the batch three more pairs at -4.3, 1.1 and 6.7.",
    )


def _known_curve(family: str, text: str) -> Curve | None:
    if family != "preference":
        try:
            return loss_curve(text, points=PLACES)
        except NoCurveError:
            return None
    module = lossmith.nn.loss(text).double().eval()
    inputs = line().inputs
    losses: list[float] = []
    slopes: list[float] = []
    names = [name for name in module.inputs if name in inputs and name != "reward_shift"]
    for place in range(len(LINE)):
        given = {name: torch.tensor(inputs[name][place, :, 0]) for name in names}
        leaves = [given[name].requires_grad_() for name in ("chosen_logps", "rejected_logps")]
        values = module(**given, reduction="none")
        count = len(given["chosen_logps"])
        # Losses of completions come chosen half first: a pair's loss is that of its two sides.
        mine = values[0] if len(values) == count else values[0] + values[count]
        grads = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
        chosen, rejected = (0.0 if slope is None else float(slope[0]) for slope in grads)
        losses.append(float(mine.detach()))
        slopes.append((chosen - rejected) / 2)
    return _curve_of_pairs(text, LINE, np.array(losses), np.array(slopes))


def _token_curve(program: Program, name: str) -> Curve:
    shares = np.arange(1, PLACES + 1) / (PLACES + 1)
    logits = torch.stack([torch.as_tensor(np.log(shares / (1 - shares))), torch.zeros(PLACES, dtype=torch.float64)], -1)
    where = token_points(logits, torch.zeros(PLACES, dtype=torch.long), PLACES)
    value, gradients = value_and_gradients(program.literal_root, where.inputs, where.trained)
    slopes = where.chained(gradients).reshape(PLACES, 2)[:, 0]
    return Curve(
        name=name,
        x_name="probability p of the label",
        x=tuple(shares.tolist()),
        loss=tuple(np.broadcast_to(value, (PLACES, 1, 1)).ravel().tolist()),
        gradient_name="the label's logit z",
        gradient=tuple(slopes.tolist()),
        implied_target=tuple((shares - slopes).tolist()),
        setting="One token, 2 classes: the label has probability p, the other one takes the rest.",
    )


def _anchor_curve(program: Program, name: str) -> Curve:
    function = torch_function(program)
    cosines = -1 + 2 * torch.arange(1, PLACES + 1, dtype=torch.float64) / (PLACES + 1)
    labels = torch.tensor([0, 0, 1, 1])
    masks = {
        "same": (labels[:, None] == labels) & ~torch.eye(4, dtype=torch.bool),
        "different": labels[:, None] != labels,
    }
    losses: list[float] = []
    slopes: list[float] = []
    for cosine in cosines:
        place = cosine.clone().requires_grad_()
        tables = {**_tables(place), **masks}
        value = function(**{key: tables[key] for key in program.inputs})[0]
        slope = torch.autograd.grad(value, place, allow_unused=True)[0] if value.requires_grad else None
        losses.append(float(value.detach()))
        slopes.append(0.0 if slope is None else float(slope))
    return Curve(
        name=name,
        x_name="similarity to its own class",
        x=tuple(cosines.tolist()),
        loss=tuple(losses),
        gradient_name="that similarity",
        gradient=tuple(slopes),
        implied_target=None,
        setting="Two classes at opposite ends of a half circle; the anchor turns from the other class to its own.",
    )


def _tables(cosine: Tensor) -> dict[str, Tensor]:
    angle = cosine.acos()
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    rows = torch.cat([torch.stack([angle.cos(), angle.sin()])[None], ends])
    similarities = rows @ rows.T
    return {"similarities": similarities, "distances": safe_sqrt((2 - 2 * similarities).clamp(min=0))}
