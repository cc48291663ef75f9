"""A weighted sum of losses, called with the union of its terms' inputs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from lossmith._checks import check_one_of, check_same_device
from lossmith._numerics import full_precision
from lossmith._reduce import NumItems, check_weights_shape, own_divisor
from lossmith._typing import Tensor
from lossmith.engines import Demand, LinearLogits, StatisticsSource
from lossmith.errors import ObjectiveInputError
from lossmith.nn.base import IGNORE_INDEX, Inputs, LossModule, graph_zero
from lossmith.nn.composition import Composition
from lossmith.nn.linear import LinearCall
from lossmith.nn.logits import LogitsLoss, check_logits_labels, logits_plan
from lossmith.nn.plan import Plan
from lossmith.nn.terms import Terms


@final
class WeightedSum(LossModule):
    """`0.6*cross_entropy + 0.4*lovasz_softmax[answer]`: each term with its weight and its label scope.

    A schedule such as `cross_entropy -> lovasz_softmax @ 0.3` also needs `set_progress` before each step.

    Args:
        composition: The terms with their weights and phases.
        terms: A module per term; one that stands for terms of several phases counts with the sum of their weights.
    """

    progress: Tensor

    def __init__(self, composition: Composition, terms: list[LossModule]):
        super().__init__()
        self.composition = composition
        self.terms = Terms(terms)
        self.inputs = _union(term.inputs for term in terms)
        self.required = tuple(name for name in self.inputs if any(name in term.required for term in terms))
        self.items = _union(term.items for term in terms)
        self.batch_coupled = any(term.batch_coupled for term in terms)
        # What `num_items` counts: a term on a scope of the labels divides by the items of that scope.
        self.counts: tuple[str, ...] = tuple(
            term.items[0] if spec.scope is None else f"{term.items[0]}[{spec.scope}]"
            for spec, term in zip(composition.terms, terms, strict=True)
        )
        # NaN until told: a schedule that never moves would train its first phase without a word.
        self.register_buffer("progress", torch.tensor(math.nan), persistent=self.scheduled)

    @property
    def scheduled(self) -> bool:
        """Whether the weights change over training, so that `set_progress` must be called."""
        return bool(self.composition.handovers)

    def __str__(self) -> str:
        return str(self.composition)

    def set_progress(self, progress: float) -> None:
        """Say which share of training is done, as `step / num_steps`; a schedule weighs its phases by it.

        Raises:
            ObjectiveInputError: If it is not in [0, 1].
        """
        if not (isinstance(progress, int | float) and 0 <= progress <= 1):
            raise ObjectiveInputError(f"`progress` must be in [0, 1], the share of training done, got {progress}.")
        self.progress.fill_(progress)

    def weights_at(self, progress: float) -> list[tuple[LossModule, float]]:
        """Each module once, in order, with the weight that it has at a share of training in [0, 1]."""
        shares, weights = self.composition.shares(progress), dict.fromkeys(self.terms.firsts, 0.0)
        for spec, first in zip(self.composition.terms, self.terms.firsts, strict=True):
            weights[first] += shares[spec.phase] * spec.weight
        return [(self.terms[first], weight) for first, weight in weights.items()]

    def forward(
        self,
        *args: object,
        weights: Tensor | Mapping[str, Tensor] | None = None,
        num_items: NumItems | Mapping[str, NumItems] | None = None,
        reduction: str = "mean",
        scopes: Mapping[str, Tensor] | None = None,
        embedding_labels: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Sum of the weighted terms.

        Args:
            *args: The inputs in the order of `self.inputs`; only where all terms take the same ones.
            weights: One weight per item where all terms share one kind of item; in a mixed sum a tensor reaches the
                token terms only, and a dict `{"token": w, "region": v}` says which.
            num_items: The divisor where all terms share one kind of item, else a dict by kind, with the scope where
                a term has one: `{"token": n, "token[answer]": m, "region": k}`.
            reduction: "mean", "sum", or "none" where all terms share one kind of item.
            scopes: Name -> bool tensor of the shape of `labels`, True where the label counts for terms `[name]`.
            embedding_labels: Labels [anchors] of `embeddings` where these are not one per label of the logits, as when
                every token of a text is an anchor.
            **kwargs: The inputs by name, as `logits=`, `embeddings=`, `labels=`.

        Raises:
            ObjectiveInputError: For missing or unknown inputs or scopes, or an int `num_items` over mixed kinds.
        """
        inputs = self.bind(args, kwargs)
        given = [part for value in inputs.values() for part in getattr(value, "parts", (value,))]
        divisors = self._checked_divisors(num_items, reduction)
        terms = self._counting(inputs, {} if scopes is None else scopes, embedding_labels)
        parts: list[Tensor] = []
        if isinstance(inputs.get("logits"), LinearLogits):
            on_logits = [term for term in terms if isinstance(term.module, LogitsLoss)]
            call = self._call(inputs, on_logits, weights, divisors, reduction) if on_logits else None
            if call is not None and call.in_forward:
                terms = [term for term in terms if not isinstance(term.module, LogitsLoss)]
                parts.append(self._in_forward(call, on_logits, weights, divisors, reduction))
            elif call is not None:
                inputs["logits"] = call.source()
        parts += [self._value(term, inputs, weights, divisors, reduction) for term in terms]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        if self.scheduled:
            # Inputs and proxies of a phase that does not count keep their place in the graph, with gradient 0.
            idle = [value for value in (*given, *self.parameters()) if value.requires_grad]
            total = total + graph_zero(*idle).to(total.dtype) if idle else total
        return total

    def breakdown(
        self,
        *args: object,
        weights: Tensor | Mapping[str, Tensor] | None = None,
        num_items: NumItems | Mapping[str, NumItems] | None = None,
        reduction: str = "mean",
        scopes: Any = None,
        embedding_labels: Any = None,
        **kwargs: object,
    ) -> dict[str, Tensor]:
        """The weighted value of each term that counts now; see `LossModule.breakdown`."""
        inputs = self.bind(args, kwargs)
        divisors = self._divisors(num_items)
        terms = self._counting(inputs, {} if scopes is None else scopes, embedding_labels)
        on_logits = [term for term in terms if isinstance(term.module, LogitsLoss)]
        if isinstance(inputs.get("logits"), LinearLogits) and on_logits:
            inputs["logits"] = self._call(inputs, on_logits, weights, divisors, reduction).source()
        values: dict[str, Tensor] = {}
        for term in terms:
            value = self._value(term, inputs, weights, divisors, reduction)
            values[term.name] = values[term.name] + value if term.name in values else value
        return values

    def demands(self, labels: Tensor, scopes: Mapping[str, Tensor] | None = None) -> list[Demand]:
        """See `LossModule.demands`."""
        terms = self._counting({"labels": labels}, {} if scopes is None else scopes)
        return [term.module.demand(term.labels) for term in terms if isinstance(term.module, LogitsLoss)]

    def _value(
        self,
        term: "_Counting",
        inputs: Inputs,
        weights: Tensor | Mapping[str, Tensor] | None,
        divisors: Mapping[str, NumItems],
        reduction: str,
    ) -> Tensor:
        """The weighted value of one term."""
        own = {name: inputs[name] for name in term.module.inputs if name in inputs}
        if term.labels is not None:
            own["labels"] = term.labels
        return term.weight * term.module(
            **own,
            weights=self._weights_for(term.module.items[0], weights),
            num_items=divisors.get(term.count),
            reduction=reduction,
        )

    def plan(
        self,
        *args: object,
        weights: Tensor | Mapping[str, Tensor] | None = None,
        num_items: NumItems | Mapping[str, NumItems] | None = None,
        reduction: str = "mean",
        scopes: Any = None,
        embedding_labels: Any = None,
        **kwargs: object,
    ) -> Plan:
        """How a call with these arguments is going to be computed: one plan for all terms on logits."""
        inputs = self.bind(args, kwargs)
        check_one_of("reduction", reduction, ("none", "sum", "mean"))
        divisors = self._checked_divisors(num_items, reduction)
        terms = self._counting(inputs, {} if scopes is None else scopes, embedding_labels)
        on_logits = [term for term in terms if isinstance(term.module, LogitsLoss)]
        if not on_logits:
            first, labels = terms[0].module, terms[0].labels
            own = {name: inputs[name] for name in first.inputs if name in inputs}
            return first.plan(**own | ({} if labels is None else {"labels": labels}), reduction=reduction)
        for term in on_logits:
            own = self._weights_for(term.module.items[0], weights)
            term.module.check_reduction(term.labels, own, divisors.get(term.count), reduction)
        return logits_plan(inputs, lambda: self._call(inputs, on_logits, weights, divisors, reduction))

    def _counting(
        self, inputs: Inputs, scopes: Mapping[str, Tensor], embedding_labels: Tensor | None = None
    ) -> list["_Counting"]:
        """The terms that count now, with the labels of their scope."""
        if embedding_labels is not None and "embeddings" not in self.inputs:
            raise ObjectiveInputError(f"`embedding_labels` must be left out: no term of '{self}' reads embeddings.")
        scopes = self._checked_scopes(scopes)
        shares = self._shares()
        restricted: dict[str | None, Tensor | None] = {None: inputs.get("labels")}
        counting: dict[int, _Counting] = {}
        specs = zip(self.composition.terms, self.terms, self.terms.firsts, self.counts, strict=True)
        for spec, module, first, count in specs:
            if shares[spec.phase] == 0:
                continue
            weight = shares[spec.phase] * spec.weight
            if first in counting:
                # Called once: a memory must not meet a batch twice, nor a running mean count it twice.
                counting[first] = replace(counting[first], weight=counting[first].weight + weight)
                continue
            if spec.scope is not None and spec.scope not in restricted:
                restricted[spec.scope] = _restrict(inputs["labels"], scopes[spec.scope], spec.scope)
            labels = restricted[spec.scope] if "labels" in module.inputs else None
            if embedding_labels is not None and "embeddings" in module.inputs:
                if spec.scope is not None:
                    raise ObjectiveInputError(
                        f"Scope '{spec.scope}' restricts `labels`, and '{module}' reads `embedding_labels`: mark what "
                        f"does not count there with -100."
                    )
                labels = embedding_labels
            name = str(module) if spec.scope is None else f"{module}[{spec.scope}]"
            counting[first] = _Counting(name, module, weight, count, labels)
        return list(counting.values())

    def _call(
        self,
        inputs: Inputs,
        on_logits: list["_Counting"],
        weights: Tensor | Mapping[str, Tensor] | None,
        divisors: Mapping[str, NumItems],
        reduction: str,
    ) -> LinearCall:
        """What the terms on logits ask of logits that are not built."""
        check_logits_labels(inputs["logits"].shape, inputs["labels"])
        given = [self._weights_for(term.module.items[0], weights) for term in on_logits]
        return LinearCall(
            linear=inputs["logits"],
            terms=[term.module.term(term.labels) for term in on_logits],
            numbers=[*given, *divisors.values()],
            reduction=reduction,
        )

    def _in_forward(
        self,
        call: LinearCall,
        terms: list["_Counting"],
        weights: Tensor | Mapping[str, Tensor] | None,
        divisors: Mapping[str, NumItems],
        reduction: str,
    ) -> Tensor:
        """The terms on logits, their gradients formed chunk by chunk."""
        own_weights = self._weights_for("token", weights)
        if own_weights is not None:
            check_weights_shape(own_weights, call.linear.shape[:-1])
            own_weights = own_weights.clone()
        known = dict(divisors)
        if reduction == "mean":
            for term in terms:
                valid = term.labels != IGNORE_INDEX
                known.setdefault(term.count, own_divisor(valid, own_weights, call.linear.dtype))

        def evaluate(source: StatisticsSource, take: Callable[[Tensor], Tensor]) -> Tensor:
            own = None if own_weights is None else take(own_weights)
            losses = [
                term.weight
                * term.module(
                    logits=source,
                    labels=take(term.labels),
                    weights=own,
                    num_items=known.get(term.count),
                    reduction=reduction,
                )
                for term in terms
            ]
            return torch.stack(losses).sum()

        with full_precision(call.linear.device):
            return call.run_in_forward(evaluate)

    def _shares(self) -> tuple[float, ...]:
        if not self.scheduled:
            return (1.0,)
        # float32 keeps 7 digits: what was set as 0.3 is 0.3 again.
        progress = round(float(self.progress), 6)
        if math.isnan(progress):
            raise ObjectiveInputError(
                f"'{self}' changes over training: call `set_progress(step / num_steps)` before each step."
            )
        return self.composition.shares(progress)

    def bind(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Inputs:
        """The inputs by name; by position only where all terms take the same ones."""
        if args and any(term.inputs != self.inputs for term in self.terms):
            shown = ", ".join(f"`{name}`" for name in self.required)
            raise ObjectiveInputError(f"'{self}' must be called with keywords: {shown}.")
        return super().bind(args, kwargs)

    def _checked_divisors(
        self, num_items: NumItems | Mapping[str, NumItems] | None, reduction: str
    ) -> Mapping[str, NumItems]:
        if reduction == "none" and len(self.items) > 1:
            raise ObjectiveInputError(
                f"reduction 'none' needs one kind of item, this sum mixes {', '.join(self.items)}: call its terms."
            )
        return self._divisors(num_items)

    def _divisors(self, num_items: NumItems | Mapping[str, NumItems] | None) -> Mapping[str, NumItems]:
        if num_items is None:
            return {}
        kinds = list(dict.fromkeys(self.counts))
        if isinstance(num_items, Mapping):
            unknown, missing = sorted(set(num_items) - set(kinds)), sorted(set(kinds) - set(num_items))
            if unknown or missing:
                fault = f"names {unknown}" if unknown else f"lacks {missing}"
                raise ObjectiveInputError(f"`num_items` {fault}, but the terms count {', '.join(kinds)}.")
            return num_items
        if len(kinds) > 1:
            raise ObjectiveInputError(
                f"`num_items` must be a dict by kind of item here ({', '.join(kinds)}), got {num_items}: "
                f"one number would divide every term by the items of another."
            )
        return {kinds[0]: num_items}

    def _weights_for(self, kind: str, weights: Tensor | Mapping[str, Tensor] | None) -> Tensor | None:
        if isinstance(weights, Mapping):
            unknown = sorted(set(weights) - set(self.items))
            if unknown:
                raise ObjectiveInputError(f"`weights` names {unknown}, but the terms count {', '.join(self.items)}.")
            return weights.get(kind)
        if weights is None or len(self.items) == 1 or kind == "token":
            return weights
        if "token" not in self.items:
            raise ObjectiveInputError(f"`weights` must be a dict by kind of item here ({', '.join(self.items)}).")
        return None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WeightedSum":
        exact = self.progress
        super()._apply(fn, recurse)
        # A loss cast to half precision still knows where in training it is.
        if self.progress.element_size() < 4:
            self.progress = exact.to(self.progress.device)
        return self

    def _checked_scopes(self, scopes: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not isinstance(scopes, Mapping):
            raise ObjectiveInputError(
                f"`scopes` must be a dict of a bool tensor per name, as in {{'answer': mask}}, got "
                f"{type(scopes).__name__}."
            )
        wanted = {term.scope for term in self.composition.terms if term.scope is not None}
        missing, unused = sorted(wanted - set(scopes)), sorted(set(scopes) - wanted)
        if missing:
            raise ObjectiveInputError(f"`scopes` must hold {missing}: '{self}' names them, got {sorted(scopes)}.")
        if unused:
            raise ObjectiveInputError(f"`scopes` holds {unused}, which no term of '{self}' names.")
        return scopes


@dataclass(frozen=True)
class _Counting:
    """One term that counts in this call."""

    name: str
    """Without its weight."""
    module: Any
    weight: float
    count: str
    """What its divisor counts."""
    labels: Any
    """Labels of its scope; None where it reads none."""


def _union(groups: object) -> tuple[str, ...]:
    """Names in order of appearance, with `labels` last, as every family has it."""
    names = list(dict.fromkeys(name for group in groups for name in group))  # pyright: ignore[reportGeneralTypeIssues]
    return tuple(sorted(names, key=lambda name: name == "labels"))


def _restrict(labels: Tensor, keep: Tensor, scope: str) -> Tensor:
    check_same_device(labels=labels, **{f"scopes['{scope}']": keep})
    if keep.dtype != torch.bool or keep.shape != labels.shape:
        raise ObjectiveInputError(
            f"Scope '{scope}' must be a bool tensor of the shape of `labels`, {tuple(labels.shape)}, got {keep.dtype} "
            f"{tuple(keep.shape)}."
        )
    return labels.masked_fill(~keep, IGNORE_INDEX)
