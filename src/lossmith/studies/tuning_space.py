"""What is tuned for a loss: optimiser settings, the share b of cross-entropy, and every term's hyper-parameters."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError, ObjectiveInputError
from lossmith.nn import loss as build
from lossmith.nn import parse_composition
from lossmith.nn.composition import Composition, Term, check_hyperparameters
from lossmith.studies.config import SharedConfig
from lossmith.studies.tuning_ranges import LOG, RANGES, SHARE

Value = bool | int | float | str
DIGITS = 4
"""Significant digits of a tuned number: more of them decide nothing and make strings that nobody reads."""
SETTINGS = (
    "learning_rate",
    "epochs",
    "proxy_lr_multiplier",
    "batch_size",
    "weight_decay",
    "warmup_ratio",
    "max_grad_norm",
    "schedule",
    "pooling",
    "sampling",
    "samples_per_class",
    "mixture",
)
"""Settings of a study that a space may name; the first two, and the third where proxies are, are tuned anyway."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One thing that is tuned: a range of numbers, or a few values."""

    name: str
    """A setting, `b`, or `loss.hyperparameter`."""
    untuned: Value
    """What it is without tuning: the first trial."""
    low: float = 0.0
    """Lower end of the range."""
    high: float = 0.0
    """Upper end of the range."""
    log: bool = False
    """Whether the range is searched by its logarithm."""
    choices: tuple[Value, ...] = ()
    """The values to try, the untuned one among them; then there is no range."""

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are tried."""
        return isinstance(self.untuned, int) and not isinstance(self.untuned, bool)

    @property
    def ends(self) -> tuple[Value, ...]:
        """What a space is checked with: both ends, or all choices."""
        kind = int if self.whole else float
        return self.choices or (kind(self.low), kind(self.high))

    def described(self) -> dict[str, Any]:
        """As JSON values, for records and reports."""
        where = (
            {"choices": list(self.choices)} if self.choices else {"low": self.low, "high": self.high, "log": self.log}
        )
        return {"untuned": self.untuned, **where}


def search_space(config: SharedConfig, loss: str, given: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Everything that is tuned for one loss of a study, each part checked by building it.

    Args:
        config: The study; its settings are the untuned ones.
        loss: Canonical composition string.
        given: Name -> `{low, high, log}`, a list of values to try, or None to leave it as it is. Names that belong to
            other losses are passed over.

    Raises:
        ConfigurationError: For a range or a value that cannot be used.

    Example:
        >>> from lossmith.studies import StudyConfig
        >>> [part.name for part in search_space(StudyConfig(), "0.4*cross_entropy + 0.6*supcon", {"epochs": None})]
        ['learning_rate', 'b', 'cross_entropy.label_smoothing', 'supcon.temperature']
    """
    composition = parse_composition(loss)
    space = {part.name: part for part in _shipped(config, composition)}
    untuned = _untuned(config, composition)
    for name, entry in given.items():
        if name not in untuned:
            continue
        if entry is None:
            space.pop(name, None)
        else:
            space[name] = _read(name, untuned[name], entry, space.get(name))
    for part in space.values():
        for end in part.ends:
            _try(config, loss, part, end)
    return tuple(space.values())


def check_names(config: SharedConfig, given: Mapping[str, Any]) -> None:
    """Refuse a name in a space that no loss of the study has.

    Raises:
        ConfigurationError: With the nearest name and all that could be tuned.
    """
    known = dict.fromkeys(name for loss in config.all_losses for name in _untuned(config, parse_composition(loss)))
    for name in given:
        if name not in known:
            raise ConfigurationError(
                f"`space`: no loss of this study has `{name}` to tune.{did_you_mean(str(name), known)} "
                f"Known: {', '.join(known)}."
            )


def tuned(config: SharedConfig, loss: str, values: Mapping[str, Value]) -> tuple[SharedConfig, str]:
    """The settings and the loss string that a choice of values makes; what is untuned stays letter for letter.

    Example:
        >>> from lossmith.studies import StudyConfig
        >>> tuned(StudyConfig(), "0.4*cross_entropy + 0.6*supcon", {"b": 0.71239, "supcon.temperature": 0.05})[1]
        '0.7124*cross_entropy + 0.2876*supcon(temperature=0.05)'
    """
    composition = parse_composition(loss)
    untuned = _untuned(config, composition)
    changed = {name: _tidy(value) for name, value in values.items() if value != untuned[name]}
    settings = {name: value for name, value in changed.items() if name in SETTINGS}
    terms = [_with_hyperparameters(term, changed) for term in composition.terms]
    if "b" in changed:
        terms = _with_share(composition, terms, float(changed["b"]))
    return config.model_copy(update=settings), str(Composition(tuple(terms), composition.handovers))


def _shipped(config: SharedConfig, composition: Composition) -> Iterable[Parameter]:
    rate, epochs = config.learning_rate, config.epochs
    yield Parameter(name="learning_rate", untuned=rate, low=_tidy(rate / 10), high=_tidy(rate * 10), log=True)
    yield Parameter(name="epochs", untuned=epochs, low=max(1, epochs // 2), high=2 * epochs, log=True)
    untuned = _untuned(config, composition)
    if "proxy_lr_multiplier" in untuned:
        yield _widened("proxy_lr_multiplier", untuned, 1, 100, LOG)
    if "b" in untuned:
        yield _widened("b", untuned, *SHARE)
    for name in untuned:
        loss, dot, hyperparameter = name.partition(".")
        if dot and hyperparameter in RANGES.get(loss, {}):
            low, high, *log = RANGES[loss][hyperparameter]
            yield _widened(name, untuned, low, high, bool(log))


def _widened(name: str, untuned: Mapping[str, Value], low: float, high: float, log: bool = False) -> Parameter:
    value = untuned[name]
    assert isinstance(value, int | float)
    # A logarithm cannot reach a 0 that the user wrote.
    return Parameter(name=name, untuned=value, low=min(low, value), high=max(high, value), log=log and value > 0)


def _untuned(config: SharedConfig, composition: Composition) -> dict[str, Value]:
    """Name -> present value of everything that could be tuned for a loss."""
    owns_proxies = any(term.record.required for term in composition.terms)
    found: dict[str, Value] = {
        name: getattr(config, name)
        for name in SETTINGS
        if name in type(config).model_fields and (owns_proxies or name != "proxy_lr_multiplier")
    }
    if (share := _share(composition)) is not None:
        found["b"] = share
    by_loss: dict[str, list[Term]] = {}
    for term in composition.terms:
        by_loss.setdefault(term.record.name, []).append(term)
    for loss, terms in by_loss.items():
        for name, default in terms[0].record.hyperparameters.items():
            present = {term.hyperparameters.get(name, default) for term in terms}
            # Two terms of one loss that differ on purpose stay as they are written.
            if len(present) == 1:
                found[f"{loss}.{name}"] = present.pop()
    return found


def _share(composition: Composition) -> float | None:
    """Share of cross-entropy (of the first term where there is none) in a sum of two; None for anything else."""
    terms = composition.terms
    if len(terms) != 2 or composition.handovers or min(term.weight for term in terms) <= 0:
        return None
    return terms[_place_of_b(terms)].weight / sum(term.weight for term in terms)


def _place_of_b(terms: Iterable[Term]) -> int:
    names = [term.record.name for term in terms]
    return names.index("cross_entropy") if "cross_entropy" in names else 0


def _with_share(composition: Composition, terms: list[Term], share: float) -> list[Term]:
    # The sum of the weights stays: it scales the gradient, which is the learning rate's matter.
    total = sum(term.weight for term in composition.terms)
    weights = [_tidy(total * share), _tidy(total * (1 - share))]
    if _place_of_b(terms) == 1:
        weights.reverse()
    return [replace(term, weight=float(weight)) for term, weight in zip(terms, weights, strict=True)]


def _with_hyperparameters(term: Term, changed: Mapping[str, Value]) -> Term:
    prefix = f"{term.record.name}."
    own = {name.removeprefix(prefix): value for name, value in changed.items() if name.startswith(prefix)}
    return replace(term, hyperparameters=check_hyperparameters(term.record, {**term.hyperparameters, **own}))


def _tidy(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _read(name: str, untuned: Value, entry: Any, shipped: Parameter | None) -> Parameter:
    """A part of the space as the user wrote it."""
    if isinstance(entry, list | tuple) and entry:
        values = [_of_kind(name, untuned, value) for value in entry]
        return Parameter(name=name, untuned=untuned, choices=tuple(dict.fromkeys([untuned, *values])))
    if not isinstance(entry, dict) or not entry or not set(entry) <= {"low", "high", "log"}:
        raise ConfigurationError(
            f"`space.{name}` must be a range such as {{low: 0.1, high: 1, log: true}}, a list of values to try, or "
            f"null to leave it untuned, got {entry!r}."
        )
    if isinstance(untuned, bool | str):
        raise ConfigurationError(f"`space.{name}` is {untuned!r} untuned and has no range: list the values to try.")
    ends = {}
    for end in ("low", "high"):
        if end not in entry and (shipped is None or shipped.choices):
            raise ConfigurationError(f"`space.{name}` needs `low` and `high`, got {entry!r}.")
        ends[end] = _of_kind(name, untuned, entry[end]) if end in entry else getattr(shipped, end)
    log = entry.get("log", shipped is not None and shipped.log)
    return _checked(Parameter(name=name, untuned=untuned, **ends, log=log))


def _checked(part: Parameter) -> Parameter:
    if not isinstance(part.log, bool):
        raise ConfigurationError(f"`space.{part.name}`: `log` must be true or false, got {part.log!r}.")
    if part.low >= part.high:
        raise ConfigurationError(
            f"`space.{part.name}` must have `low` < `high`, got low {part.low:g} and high {part.high:g}."
        )
    if part.log and part.low <= 0:
        raise ConfigurationError(f"`space.{part.name}` has `log: true`, so `low` must be > 0, got {part.low:g}.")
    if not part.low <= float(part.untuned) <= part.high:
        raise ConfigurationError(
            f"`space.{part.name}` is {part.low:g} to {part.high:g} and leaves out the untuned value {part.untuned:g}, "
            f"which is the first trial: widen it, or change the untuned value."
        )
    return part


def _of_kind(name: str, untuned: Value, value: Any) -> Value:
    """A written value in the kind of the untuned one: YAML reads 1e-5 as a text."""
    try:
        if isinstance(untuned, bool | str):
            if isinstance(value, type(untuned)):
                return value
        elif not isinstance(value, bool):
            number = float(value)
            if isinstance(untuned, float):
                return number
            if number.is_integer():
                return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    kind = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}[type(untuned)]
    raise ConfigurationError(f"`space.{name}` must hold {kind}, got {value!r}.")


def _try(config: SharedConfig, loss: str, part: Parameter, value: Value) -> None:
    """Build what one value makes, so that no trial fails by its range."""
    if part.name == "b" and not 0 < float(value) < 1:
        raise ConfigurationError(f"`space.b` must lie between 0 and 1, where both terms count, got {value}.")
    try:
        settings, text = tuned(config, loss, {part.name: value})
        type(config).model_validate(settings.settings())
        sizes = dict.fromkeys(parse_composition(text).required, 2)
        build(text, **sizes)
    except ValidationError as error:
        raise ConfigurationError(f"`space.{part.name}` cannot be {value!r}: {error.errors()[0]['msg']}.") from None
    except ObjectiveInputError as error:
        raise ConfigurationError(f"`space.{part.name}` cannot be {value!r}: {str(error).splitlines()[0]}") from None
