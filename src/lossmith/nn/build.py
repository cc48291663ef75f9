"""`lossmith.loss`: from a name or a composition string to a module."""

from typing import Any

from lossmith._checks import did_you_mean
from lossmith.errors import ObjectiveInputError
from lossmith.nn.composition import Composition, Term, check_hyperparameters, parse_composition
from lossmith.nn.modules import LossModule, MetricLoss, ObjectiveModule, RegionLoss, TokenLoss
from lossmith.nn.probe import probe
from lossmith.nn.weighted_sum import WeightedSum

_MODULES: dict[str, type[ObjectiveModule]] = {"token": TokenLoss, "region": RegionLoss, "metric": MetricLoss}
_MODULE_SETTINGS = {"token": (), "region": ("region",), "metric": ()}
_SIZES = ("num_classes", "embedding_dim")


def loss(text: str, /, **settings: Any) -> LossModule:
    """Build a loss from its name or from a weighted sum of names.

    Args:
        text: A name (`"focal"`) or a composition (`"0.6*cross_entropy + 0.4*lovasz_softmax[answer]"`).
        **settings: Hyper-parameters of the loss. In a sum each must be declared by exactly one term (write it inside
            the string otherwise); `num_classes` and `embedding_dim` go to every term that owns proxies, and
            `region="sequence"` to every region term.

    Returns:
        A `torch.nn.Module`; `str()` gives the composition back. Call it with the inputs of its family:
        `(logits, labels)` for token and region losses, `(embeddings, labels)` for metric losses, keywords for mixed
        sums. Every call takes `weights`, `num_items` and `reduction` ("mean", "sum", "none").

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
    names = record.required + _MODULE_SETTINGS.get(record.family, ())
    missing = [name for name in record.required if name not in settings]
    if missing:
        raise ObjectiveInputError(
            f"'{record.name}' owns proxies and needs {' and '.join(f'`{name}`' for name in missing)}."
        )
    own = {name: settings[name] for name in names if name in settings}
    if record.family not in _MODULES:
        raise ObjectiveInputError(
            f"'{record.name}' is of family '{record.family}', which has no module yet; families with one: "
            f"{', '.join(_MODULES)}. Call the function itself."
        )
    module = _MODULES[record.family](record, term.hyperparameters, **own)
    probe(module)
    return module


def _with_settings(composition: Composition, settings: dict[str, Any]) -> Composition:
    """The composition with every keyword given to the one term that declares it."""
    terms = list(composition.terms)
    for name, value in settings.items():
        places = [i for i, term in enumerate(terms) if name in _declared(term)]
        if not places:
            known = sorted({n for term in terms for n in _declared(term)})
            takes = f"It takes {', '.join(f'`{n}`' for n in known)}." if known else "It takes none."
            raise ObjectiveInputError(
                f"'{composition}' has no hyper-parameter `{name}`.{did_you_mean(name, known)} {takes}"
            )
        if name in _SIZES or name == "region":
            continue
        if len(places) > 1:
            owners = ", ".join(f"'{terms[i].record.name}'" for i in places)
            raise ObjectiveInputError(
                f"`{name}` is a hyper-parameter of {owners}: write it inside the string, as in "
                f'"{terms[places[0]].record.name}({name}={value!r})".'
            )
        terms[places[0]] = _with_one(terms[places[0]], name, value)
    return Composition(tuple(terms))


def _declared(term: Term) -> tuple[str, ...]:
    return (*term.record.hyperparameters, *term.record.required, *_MODULE_SETTINGS.get(term.record.family, ()))


def _with_one(term: Term, name: str, value: Any) -> Term:
    if name in term.written:
        raise ObjectiveInputError(f"`{name}` of '{term.record.name}' is given in the string and as a keyword.")
    checked = check_hyperparameters(term.record, {**term.hyperparameters, name: value})
    return Term(term.record, term.weight, checked, term.scope, term.written)
