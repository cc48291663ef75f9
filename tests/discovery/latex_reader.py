"""A reader of the formulas that discovery writes: LaTeX to numbers, sharing no code with what wrote it."""

import math
import re
from collections.abc import Callable

import numpy as np
from scipy.special import erf

NAMES = {
    r"\log \pi(y_c)": "chosen_logps",
    r"\log \pi(y_r)": "rejected_logps",
    r"\log \pi_\mathrm{ref}(y_c)": "ref_chosen_logps",
    r"\log \pi_\mathrm{ref}(y_r)": "ref_rejected_logps",
    r"|y_c|": "chosen_lengths",
    r"|y_r|": "rejected_lengths",
    r"\log p": "token_logps",
    r"\log(1 - p)": "complement_logps",
    r"\mathrm{same}": "same",
    r"\mathrm{different}": "different",
    r"\alpha": "alpha",
    r"\beta": "beta",
    r"\gamma": "gamma",
    r"\tau": "tau",
    "H": "entropy",
    "Z": "log_normalizer",
    "S": "similarities",
    "d": "distances",
}
FUNCTIONS: dict[str, Callable] = {
    r"\exp": np.exp,
    r"\log\sigma": lambda x: -np.logaddexp(0, -x),
    r"\log": np.log,
    r"\sigma": lambda x: np.exp(-np.logaddexp(0, -x)),
    r"\tanh": np.tanh,
    r"\arctan": np.arctan,
    r"\max": np.maximum,
    r"\min": np.minimum,
    r"\operatorname{softplus}": lambda x: np.logaddexp(0, x),
    r"\operatorname{erf}": erf,
    r"\operatorname{clamp}": lambda x, low, high: np.minimum(np.maximum(x, low), high),
    r"\operatorname{sg}": lambda x: x,
    r"\operatorname{mean}": lambda x: np.mean(x),
    r"\operatorname{Var}": lambda x: np.var(x, ddof=1),
    r"\operatorname{std}": lambda x: np.std(x, ddof=1),
}
_FIXED = [
    *NAMES, *FUNCTIONS, r"\frac", r"\sqrt", r"\left(", r"\right)", r"\left[", r"\right]", r"\left|", r"\right|",
    r"\begin{cases}", r"\end{cases}", r"\text{if }", r"\text{otherwise}", r"\\", "&", r"\,", r"\cdot", r"\le", r"\ge",
    r"\ne", r"\wedge", r"\vee", r"\neg", r"\infty", "<", ">", "=", "+", "-", "^", "_", "{", "}", ",", "e",
]  # fmt: skip
_TOKEN = re.compile(
    "|".join(
        [r"\\mathrm\{(?:\w|\\_)+\}", *map(re.escape, sorted(_FIXED, key=len, reverse=True)), r"\d+(?:\.\d+)?", r"\S"]
    )
)
_COMPARE = {"<": np.less, ">": np.greater, "=": np.equal, r"\le": np.less_equal, r"\ge": np.greater_equal}


def value_of(latex: str, given: dict[str, np.ndarray | float]) -> np.ndarray:
    """What a formula comes to; numbers per anchor are columns beside tables."""
    reader = _Reader(_TOKEN.findall(latex), given)
    found = reader.either()
    assert not reader.tokens, f"left over: {reader.tokens[:5]}"
    return np.asarray(found)


class _Reader:
    def __init__(self, tokens: list[str], given: dict[str, np.ndarray | float]):
        self.tokens, self.given = tokens[::-1], given

    def next(self) -> str:
        return self.tokens.pop()

    def at(self, *wanted: str) -> bool:
        return bool(self.tokens) and self.tokens[-1] in wanted

    def take(self, wanted: str) -> None:
        found = self.next()
        assert found == wanted, f"{wanted} expected, got {found}"

    def either(self):
        left = self.both()
        while self.at(r"\vee"):
            self.next()
            left = np.logical_or(left, self.both())
        return left

    def both(self):
        left = self.comparison()
        while self.at(r"\wedge"):
            self.next()
            left = np.logical_and(left, self.comparison())
        return left

    def comparison(self):
        left = self.sum()
        if self.at(*_COMPARE, r"\ne"):
            op = self.next()
            right = self.sum()
            return np.not_equal(left, right) if op == r"\ne" else _COMPARE[op](left, right)
        return left

    def sum(self):
        left = self.product()
        while self.at("+", "-"):
            sign = 1 if self.next() == "+" else -1
            # A second sign would be read as a mistake by anyone.
            assert not self.at("-", "+")
            left = left + sign * self.product()
        return left

    def product(self):
        left = self.signed()
        while self.at(r"\,", r"\cdot"):
            dot = self.next() == r"\cdot"
            assert not self.at("-", "+")
            assert dot or not self.tokens[-1][0].isdigit()
            left = left * self.power()
        return left

    def signed(self):
        if self.at("-"):
            self.next()
            assert not self.at("-")
            return -self.product()
        if self.at(r"\neg"):
            self.next()
            return np.logical_not(self.signed())
        return self.power()

    def power(self):
        base = self.atom()
        if self.at("^"):
            self.next()
            exponent = self.braced() if self.at("{") else float(self.next())
            return np.asarray(base, dtype=float) ** exponent
        return base

    def braced(self):
        self.take("{")
        found = self.either()
        self.take("}")
        return found

    def inside(self, opening: str, closing: str) -> list:
        self.take(opening)
        found = [self.either()]
        while self.at(","):
            self.next()
            found.append(self.either())
        self.take(closing)
        return found

    def atom(self):
        token = self.tokens[-1]
        if token in (r"\left(", r"\left[", r"\left|"):
            (found,) = self.inside(token, token.translate(str.maketrans("([", ")]")).replace("left", "right"))
            return np.abs(found) if token.endswith("|") else found * 1.0 if token.endswith("[") else found
        self.next()
        if token[0].isdigit():
            return float(token)
        if token in NAMES:
            return self.given[NAMES[token]]
        if token.startswith(r"\mathrm{"):
            return self.given[token[8:-1].replace(r"\_", "_")]
        if token in (r"\infty", "e"):
            return math.inf if token == r"\infty" else math.e
        if token == r"\frac":
            top = np.asarray(self.braced(), dtype=float)
            return top / self.braced()
        if token == r"\sqrt":
            return np.sqrt(self.braced())
        if token == r"\begin{cases}":
            return self.cases()
        function = FUNCTIONS[token]
        if token == r"\operatorname{mean}" and self.at("_"):
            self.next()
            mask = self.braced()
            (values,) = self.inside(r"\left[", r"\right]")
            return mean_where(mask, values)
        opening = self.tokens[-1]
        return function(*self.inside(opening, r"\right)" if opening == r"\left(" else r"\right]"))

    def cases(self):
        first = self.either()
        self.take("&")
        self.take(r"\text{if }")
        mask = self.either()
        self.take(r"\\")
        second = self.either()
        self.take("&")
        self.take(r"\text{otherwise}")
        self.take(r"\end{cases}")
        return np.where(mask, first, second)


def mean_where(mask, values):
    """Mean where a mask is true, 0 where it never is: over a table's rows, or over everything."""
    mask, values = np.broadcast_arrays(mask, values)
    axis = -1 if mask.ndim == 2 else None
    total = np.where(mask, values, 0.0).sum(axis=axis, keepdims=axis is not None)
    return total / np.maximum(mask.sum(axis=axis, keepdims=axis is not None), 1)
