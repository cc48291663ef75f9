"""The one list of objectives. The decorator reads a signature, records it and returns the same function."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lossmith._checks import did_you_mean
from lossmith.errors import ObjectiveInputError
from lossmith.objectives._vocabulary import ITEMS, SETTINGS, VOCABULARY

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class ObjectiveRecord:
    """One objective of the library; `str(record)` is its name."""

    name: str
    """Registry name: the function's name without `_loss`."""
    family: str
    """`token`, `region`, `preference`, `unpaired` or `metric`."""
    item: str
    """What one returned loss belongs to: `token`, `region`, `pair`, `completion`, `anchor` ..."""
    source: str
    """Address of the publication."""
    reads: tuple[str, ...]
    """Statistics that the function names as parameters, in order."""
    hyperparameters: dict[str, Any]
    """Keyword-only hyper-parameters -> default, in order; those that only the module uses come last."""
    batch_coupled: bool
    """True where an item's loss depends on the other items, so that k micro-batches are not one batch."""
    function: Callable[..., Any] = field(repr=False)
    """The pure function itself."""
    aliases: tuple[str, ...] = ()
    """Other names that `lossmith.loss` accepts."""
    proxy_shape: tuple[str, ...] = ()
    """Shape of the learnable proxies in terms of `num_classes`, `embedding_dim` and hyper-parameters; () without."""
    module_hyperparameters: tuple[str, ...] = ()
    """Hyper-parameters that the module uses (the shape of proxies, normalisation) and that never reach the function."""
    needs_positives: bool = False
    """True where an anchor counts only if its class has another row in the batch."""
    row_local: bool = False
    """True where an anchor's losses need only its own row of similarities, so that rows can come in chunks."""
    needed_when: dict[str, str] = field(default_factory=dict)
    """Statistic -> the hyper-parameter without which (0 or False) it is not read, so that nobody must compute it."""
    sorts: bool = False
    """True where losses come in sorted order, so that none belongs to one given item and weights have no meaning."""
    instead: dict[str, str] = field(default_factory=dict)
    """Hyper-parameter that users look for here -> the objective that has it."""
    class_scores: Callable[..., Any] | None = field(default=None, repr=False)
    """What an objective with proxies has a softmax over classes read: (embeddings, proxies, *, hyper-parameters)."""

    @property
    def required(self) -> tuple[str, ...]:
        """Sizes that `lossmith.loss` must be given because the objective owns proxies."""
        return ("num_classes", "embedding_dim") if self.proxy_shape else ()

    @property
    def settings(self) -> dict[str, Any]:
        """What its module can be told beside the hyper-parameters, with defaults: region, memory, miner, ranks."""
        taken = {"memory_size": self.row_local, "miner": self.takes_miner, "miner_epsilon": self.takes_miner}
        return {name: default for name, default in SETTINGS.get(self.family, {}).items() if taken.get(name, True)}

    @property
    def takes_miner(self) -> bool:
        """Whether a miner can restrict what it compares: it reads a table and both masks that say what counts in it."""
        tables = {"similarities", "distances"} & set(self.reads)
        return bool(tables) and {"same", "different"} <= set(self.reads)

    @property
    def summary(self) -> str:
        """First line of the docstring: what minimising this makes the model do."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    def __str__(self) -> str:
        return self.name


_REGISTRY: dict[str, ObjectiveRecord] = {}

SAID_ELSEWHERE = {
    "apo": "apo_zero",
    "bce": "cross_entropy",
    "ce": "cross_entropy",
    "discopop_loss": "lrml",
    "eaft": "entropy_adaptive",
    "exo": "exo_pair",
    "gce": "generalized_cross_entropy",
    "info_nce": "nt_xent",
    "infonce": "nt_xent",
    "nll": "cross_entropy",
    "nca_proxy": "proxy_nca",
    "robust": "robust_dpo",
    "sigmoid": "dpo",
    "sigmoid_norm": "dpo_length_normalized",
    "sppo": "sppo_hard",
    "triplet": "triplet_margin",
}
"""Names that other frameworks or papers use, none of ours -> the objective that is meant."""


def objective(
    function: Callable[..., Any] | None = None,
    /,
    *,
    family: str = "",
    item: str = "",
    source: str = "",
    batch_coupled: bool = False,
    aliases: tuple[str, ...] = (),
    proxy_shape: tuple[str, ...] = (),
    module_hyperparameters: dict[str, Any] | None = None,
    needs_positives: bool = False,
    row_local: bool = False,
    needed_when: dict[str, str] | None = None,
    sorts: bool = False,
    instead: dict[str, str] | None = None,
    class_scores: Callable[..., Any] | None = None,
) -> Callable[[Function], Function]:
    """Record a pure function as an objective; the function comes back unchanged.

    The positional parameters are the statistics it reads and must come from the family's vocabulary; the
    keyword-only ones are its hyper-parameters and must have defaults. `lossmith.testing.check_objective` runs the whole
    battery of checks on such a function.

    Args:
        function: Nothing; a bare `@objective` lacks what it must be told, and says so.
        family: `token`, `region`, `preference`, `unpaired` or `metric`.
        item: What one returned loss belongs to. For `anchor`, `token`, `pair` of a preference and `completion` there is
            one per row; a metric objective may return any number of `pair`s or `triplet`s, which all count, or one
            scalar for the `batch`; a region objective returns a scalar.
        source: Address of the publication, where there is one.
        batch_coupled: Whether an item's loss depends on the other items.
        aliases: Other names for `lossmith.loss`.
        proxy_shape: Shape of learnable proxies that a module owns, in terms of `num_classes`, `embedding_dim` and
            hyper-parameters.
        module_hyperparameters: Name -> default of what the module uses and the function never sees.
        needs_positives: Whether an anchor counts only if its class has another row in the batch.
        row_local: Whether an anchor's losses need only its own row of similarities or distances.
        needed_when: Statistic -> the hyper-parameter without which it is not read (ones arrive in its place).
        sorts: Whether losses come in sorted order, so that weights per item must be refused.
        instead: Hyper-parameter that users look for here -> the objective that has it.
        class_scores: For an objective with proxies: what it would have a softmax over classes read, without the margin
            of training; a function of `embeddings` and `proxies` whose keywords are among the hyper-parameters.

    Raises:
        ObjectiveInputError: If the signature does not follow this contract or the name is taken.
    """
    if function is not None or not family or not item:
        raise ObjectiveInputError(
            "`@objective` must be told what the function is, as in @objective(family='token', item='token'); families: "
            f"{', '.join(VOCABULARY)}."
        )

    def record(function: Function) -> Function:
        entry = describe(
            function,
            family=family,
            item=item,
            source=source,
            batch_coupled=batch_coupled,
            aliases=aliases,
            proxy_shape=proxy_shape,
            module_hyperparameters=module_hyperparameters,
            needs_positives=needs_positives,
            row_local=row_local,
            needed_when=needed_when or {},
            sorts=sorts,
            instead=instead or {},
            class_scores=class_scores,
        )
        for name in (entry.name, *aliases):
            known = _REGISTRY.get(name)
            # The same function again (a reloaded module) is no clash.
            if known is not None and _address(known.function) != _address(function):
                raise ObjectiveInputError(
                    f"An objective named '{name}' is already recorded, in {known.function.__module__}: rename the "
                    f"function."
                )
            _REGISTRY[name] = entry
        return function

    return record


@contextmanager
def recorded(entry: ObjectiveRecord) -> Iterator[None]:
    """For the length of a `with`, an objective is found by its name as if it were one of the library.

    Not for two threads that record one name at a time.

    Raises:
        ObjectiveInputError: If the name is taken.
    """
    if entry.name in _REGISTRY:
        raise ObjectiveInputError(f"An objective named '{entry.name}' is already recorded: take another name.")
    _REGISTRY[entry.name] = entry
    try:
        yield
    finally:
        del _REGISTRY[entry.name]


def _address(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def describe(
    function: Callable[..., Any],
    *,
    family: str,
    item: str,
    source: str = "",
    batch_coupled: bool = False,
    module_hyperparameters: dict[str, Any] | None = None,
    **facts: Any,
) -> ObjectiveRecord:
    """The record that `objective` would make of a function, without recording it; `facts` are fields of the record.

    Raises:
        ObjectiveInputError: If the signature does not follow the contract.
    """
    module_defaults = module_hyperparameters or {}
    reads, hyperparameters = _read_signature(function, family, item)
    return ObjectiveRecord(
        name=function.__name__.removesuffix("_loss"),
        family=family,
        item=item,
        source=source,
        reads=reads,
        hyperparameters={**hyperparameters, **module_defaults},
        batch_coupled=batch_coupled,
        function=function,
        module_hyperparameters=tuple(module_defaults),
        **facts,
    )


def _read_signature(function: Callable[..., Any], family: str, item: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    if family not in VOCABULARY:
        raise ObjectiveInputError(f"`family` must be one of {', '.join(VOCABULARY)}, got '{family}'.")
    if item not in ITEMS[family]:
        raise ObjectiveInputError(f"`item` of family '{family}' must be one of {ITEMS[family]}, got '{item}'.")
    reads: list[str] = []
    hyperparameters: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty:
                raise ObjectiveInputError(f"Hyper-parameter `{parameter.name}` of {function.__name__} needs a default.")
            hyperparameters[parameter.name] = parameter.default
        elif parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or parameter.default is not parameter.empty:
            raise ObjectiveInputError(
                f"`{parameter.name}` of {function.__name__} must be a plain positional statistic or a "
                f"hyper-parameter after `*`."
            )
        elif parameter.name not in VOCABULARY[family]:
            raise ObjectiveInputError(
                f"{function.__name__} reads `{parameter.name}`, which family '{family}' does not have."
                f"{did_you_mean(parameter.name, VOCABULARY[family])} Known: {', '.join(VOCABULARY[family])}."
            )
        else:
            reads.append(parameter.name)
    return tuple(reads), hyperparameters


def get_record(name: str) -> ObjectiveRecord:
    """The record of a name or alias.

    Raises:
        ObjectiveInputError: For an unknown name, with the nearest one or the list.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    known = sorted(record.name for record in list_losses())
    said = SAID_ELSEWHERE.get(name.lower().replace("-", "_"))
    hint = f" Did you mean '{said}'?" if said else did_you_mean(name, _REGISTRY)
    more = f"`lossmith.list_losses()` has all {len(known)}." if hint else f"Known: {', '.join(known)}."
    raise ObjectiveInputError(f"No objective named '{name}'.{hint} {more}")


def list_losses(family: str | None = None) -> list[ObjectiveRecord]:
    """Records of all objectives, or of one family, sorted by family and name; aliases left out.

    Raises:
        ObjectiveInputError: For an unknown family.

    Example:
        >>> [str(record) for record in list_losses("unpaired")]
        ['bco', 'kto']
    """
    if family is not None and family not in VOCABULARY:
        where = " The discovered losses are of family 'preference'." if family == "discovered" else ""
        raise ObjectiveInputError(
            f"No family named '{family}'.{where or did_you_mean(family, VOCABULARY)} Known: {', '.join(VOCABULARY)}."
        )
    unique = {record.name: record for record in _REGISTRY.values()}.values()
    order = list(VOCABULARY)
    chosen = [record for record in unique if family in (None, record.family)]
    return sorted(chosen, key=lambda record: (order.index(record.family), record.name))
