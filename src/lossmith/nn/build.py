"""`lossmith.loss`: from a name or a composition string to a module."""

from dataclasses import replace
from typing import Any

from lossmith._checks import did_you_mean
from lossmith.engines.miners import no_miner
from lossmith.errors import ObjectiveInputError
from lossmith.nn.base import LossModule, ObjectiveModule
from lossmith.nn.composition import (
    MEMORY,
    MINING,
    Composition,
    Term,
    check_hyperparameters,
    no_memory,
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
_SIZES = ("num_classes", "embedding_dim")
_OF_THE_CALL = ("weights", "num_items", "reduction", "scopes")


def loss(text: str, /, **settings: Any) -> LossModule:
    """Build a loss from its name or from a weighted sum of names.

    Args:
        text: A name (`"focal"`) or a composition (`"0.6*cross_entropy + 0.4*lovasz_softmax[answer]"`).
        **settings: Hyper-parameters of the loss. In a sum each must be declared by exactly one term (write it inside
            the string otherwise); `num_classes` and `embedding_dim` go to every term that declares them. Settings of
            the module reach every term that has them, and may be written inside the string too: `region="sequence"`
            (region losses), `memory_size=4096` (a cross-batch memory, with `embedding_dim`; metric losses that compare
            each row with others on its own), `miner="hard"`, "semi_hard" or "multi_similarity" (which rows an anchor is
            compared with; metric losses that compare rows) and `gather=True` (the batch is that of all ranks; region
            and metric).

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
    if not isinstance(text, str):
        raise ObjectiveInputError(f"A loss is named by a string, as in loss('focal'), got {type(text).__name__}.")
    composition = _with_settings(parse_composition(text), settings)
    modules = _build_terms(composition, settings)
    only = composition.terms[0]
    if len(modules) == 1 and only.weight == 1 and only.scope is None:
        return modules[0]
    return WeightedSum(composition, list[LossModule](modules))


def _build_terms(composition: Composition, sizes: dict[str, Any]) -> list[ObjectiveModule]:
    """A module per term; equal terms of different phases have one, so that its proxies and memory go on."""
    built: dict[tuple[str, int], ObjectiveModule] = {}
    modules = []
    for phase in composition.phases:
        written = [str(term) for term in phase]
        for place, (text, term) in enumerate(zip(written, phase, strict=True)):
            # Equal terms of one phase stay apart: the second one has that of the second one of another phase.
            key = text, written[:place].count(text)
            if key not in built:
                built[key] = _build_term(term, sizes)
            modules.append(built[key])
    return modules


def _build_term(term: Term, sizes: dict[str, Any]) -> ObjectiveModule:
    record = term.record
    missing = [name for name in term.required if name not in sizes]
    if missing:
        why = "owns proxies" if record.required else "keeps a memory"
        raise ObjectiveInputError(f"'{record.name}' {why} and needs {' and '.join(f'`{name}`' for name in missing)}.")
    own = {name: sizes[name] for name in term.required}
    settings = {name: value for name, value in term.hyperparameters.items() if name in record.settings}
    hyperparameters = {name: value for name, value in term.hyperparameters.items() if name not in settings}
    module = _MODULES[record.family](record, hyperparameters, **settings, **own)
    probe(module)
    return module


def _with_settings(composition: Composition, settings: dict[str, Any]) -> Composition:
    """The composition with every keyword given to the terms that take it."""
    terms = list(composition.terms)
    # Sizes last: whether a term needs one may depend on another keyword (a memory).
    for name, value in sorted(settings.items(), key=lambda item: item[0] in _SIZES):
        places = [i for i, term in enumerate(terms) if name in _declared(term)]
        if not places:
            raise ObjectiveInputError(_no_place(name, composition, terms))
        if name in _SIZES:
            continue
        shared = all(name in terms[i].record.settings for i in places)
        if len(places) > 1 and not shared:
            owners = ", ".join(f"'{terms[i].record.name}'" for i in places)
            raise ObjectiveInputError(
                f"`{name}` is a hyper-parameter of {owners}: write it inside the string, as in "
                f'"{terms[places[0]].record.name}({name}={value!r})".'
            )
        for place in places:
            terms[place] = _with_one(terms[place], name, value)
    return Composition(tuple(terms), composition.handovers)


def _declared(term: Term) -> tuple[str, ...]:
    return (*term.record.hyperparameters, *term.record.settings, *term.required)


def _no_place(name: str, composition: Composition, terms: list[Term]) -> str:
    """One sentence on a keyword that no term takes."""
    for term in terms:
        if name in term.record.instead:
            return refer_to_another(term.record, name)
    comparing = [term.record for term in terms if term.record.family == "metric"]
    if name == MEMORY and comparing:
        return no_memory(comparing[0])
    if name in MINING:
        return no_miner(str(composition), name)
    if name in _OF_THE_CALL:
        return f"`{name}` is given when the loss is called, as in loss('focal')(logits, labels, {name}=...)."
    known = sorted({n for term in terms for n in _declared(term)})
    takes = f"It takes {', '.join(f'`{n}`' for n in known)}." if known else "It takes none."
    return f"'{composition}' has no hyper-parameter `{name}`.{did_you_mean(name, known)} {takes}"


def _with_one(term: Term, name: str, value: Any) -> Term:
    if name in term.written:
        raise ObjectiveInputError(f"`{name}` of '{term.record.name}' is given in the string and as a keyword.")
    checked = check_hyperparameters(term.record, {**term.hyperparameters, name: value})
    return replace(term, hyperparameters=checked)
