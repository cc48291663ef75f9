"""`lossmith.loss`: from a name or a composition string to a module."""

from dataclasses import replace
from typing import Any

from lossmith._checks import did_you_mean
from lossmith.errors import ObjectiveInputError
from lossmith.nn.base import LossModule, ObjectiveModule
from lossmith.nn.composition import (
    Composition,
    Term,
    check_hyperparameters,
    parse_composition,
    refer_to_another,
)
from lossmith.nn.logits import RegionLoss, TokenLoss
from lossmith.nn.metric import MetricLoss
from lossmith.nn.preference import PreferenceLoss, UnpairedLoss
from lossmith.nn.probe import probe
from lossmith.nn.weighted_sum import WeightedSum

_MODULES: dict[str, type[ObjectiveModule]] = {
    "token": TokenLoss,
    "region": RegionLoss,
    "preference": PreferenceLoss,
    "unpaired": UnpairedLoss,
    "metric": MetricLoss,
}
_SETTINGS = {"region": ("region", "gather"), "metric": ("memory_size", "gather")}
"""Family -> settings of its module; they reach every term of that family."""
_SIZES = ("num_classes", "embedding_dim")
_SHARED = (*_SIZES, *(name for names in _SETTINGS.values() for name in names))


def loss(text: str, /, **settings: Any) -> LossModule:
    """Build a loss from its name or from a weighted sum of names.

    Args:
        text: A name (`"focal"`) or a composition (`"0.6*cross_entropy + 0.4*lovasz_softmax[answer]"`).
        **settings: Hyper-parameters of the loss. In a sum each must be declared by exactly one term (write it inside
            the string otherwise); `num_classes` and `embedding_dim` go to every term that declares them,
            `region="sequence"` to every region term, `memory_size=4096` (a cross-batch memory, with `embedding_dim`) to
            every metric term, and `gather=True` (the batch is that of all ranks) to every region and metric term.

    Returns:
        A `torch.nn.Module`; `str()` gives the composition back. Call it with the inputs of its family:
        `(logits, labels)` for token and region losses, `(embeddings, labels)` for metric losses, `(chosen_logps,
        rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_lengths, rejected_lengths)` for preference losses
        (those that a loss does not read may be left out), `(logps, ref_logps, desirable, kl)` for unpaired ones,
        keywords for mixed sums. Every call takes `weights`, `num_items` and `reduction` ("mean", "sum", "none").

    Raises:
        ObjectiveInputError: For unknown names, unknown, unused, contradictory or out-of-range settings.
        CompositionError: For a string that cannot be read, with a caret under the place.

    Example:
        >>> import torch
        >>> focal = loss("focal", gamma=1.0)
        >>> focal(torch.zeros(3, 2), torch.tensor([0, 1, -100]))
        tensor(0.3466)
        >>> print(loss("0.5*focal(gamma=1) + 0.5*lovasz"))
        0.5*focal(gamma=1.0) + 0.5*lovasz_softmax
    """
    composition = _with_settings(parse_composition(text), settings)
    modules = [_build_term(term, settings) for term in composition.terms]
    only = composition.terms[0]
    if len(modules) == 1 and only.weight == 1 and only.scope is None:
        return modules[0]
    return WeightedSum(composition, list[LossModule](modules))


def _build_term(term: Term, settings: dict[str, Any]) -> ObjectiveModule:
    record = term.record
    missing = [name for name in record.required if name not in settings]
    if missing:
        raise ObjectiveInputError(
            f"'{record.name}' owns proxies and needs {' and '.join(f'`{name}`' for name in missing)}."
        )
    names = [*record.required, *_SETTINGS.get(record.family, ())]
    if settings.get("memory_size") and record.family == "metric":
        names.append("embedding_dim")
    own = {name: settings[name] for name in dict.fromkeys(names) if name in settings}
    module = _MODULES[record.family](record, term.hyperparameters, **own)
    probe(module)
    return module


def _with_settings(composition: Composition, settings: dict[str, Any]) -> Composition:
    """The composition with every keyword given to the one term that declares it."""
    terms = list(composition.terms)
    for name, value in settings.items():
        places = [i for i, term in enumerate(terms) if name in _declared(term, settings)]
        redirects = [term.record for term in terms if name in term.record.instead]
        if not places and redirects:
            raise ObjectiveInputError(refer_to_another(redirects[0], name))
        if not places:
            known = sorted({n for term in terms for n in (*term.record.hyperparameters, *term.record.required)})
            takes = f"It takes {', '.join(f'`{n}`' for n in known)}." if known else "It takes none."
            raise ObjectiveInputError(
                f"'{composition}' has no hyper-parameter `{name}`.{did_you_mean(name, known)} {takes}"
            )
        if name in _SHARED:
            continue
        if len(places) > 1:
            owners = ", ".join(f"'{terms[i].record.name}'" for i in places)
            raise ObjectiveInputError(
                f"`{name}` is a hyper-parameter of {owners}: write it inside the string, as in "
                f'"{terms[places[0]].record.name}({name}={value!r})".'
            )
        terms[places[0]] = _with_one(terms[places[0]], name, value)
    return Composition(tuple(terms), composition.handovers)


def _declared(term: Term, settings: dict[str, Any]) -> tuple[str, ...]:
    memory = ("embedding_dim",) if settings.get("memory_size") and term.record.family == "metric" else ()
    return (*term.record.hyperparameters, *term.record.required, *_SETTINGS.get(term.record.family, ()), *memory)


def _with_one(term: Term, name: str, value: Any) -> Term:
    if name in term.written:
        raise ObjectiveInputError(f"`{name}` of '{term.record.name}' is given in the string and as a keyword.")
    checked = check_hyperparameters(term.record, {**term.hyperparameters, name: value})
    return replace(term, hyperparameters=checked)
