"""What things cost: one vector of resources for a proposal, an evaluation, a round and a budget."""

import math
import re
from dataclasses import dataclass, fields

from lossmith.errors import ConfigurationError

RESOURCES = ("money_usd", "tokens", "device_seconds", "wall_seconds", "jobs")
"""Names of the fields of `Cost`, in the order of the ledger's columns."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """An amount of every resource."""

    money_usd: float = 0.0
    """Money paid to a model's host, in US dollars."""
    tokens: float = 0.0
    """Tokens read and written by a proposer's model."""
    device_seconds: float = 0.0
    """Seconds in which a device trained or evaluated."""
    wall_seconds: float = 0.0
    """Seconds on the clock."""
    jobs: float = 0.0
    """Evaluations on a rung."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in RESOURCES})

    def __mul__(self, times: float) -> "Cost":
        return Cost(**{name: getattr(self, name) * times for name in RESOURCES})

    __rmul__ = __mul__

    def to_dict(self) -> dict[str, float]:
        """The amounts that are not 0."""
        return {name: getattr(self, name) for name in RESOURCES if getattr(self, name)}


ZERO = Cost()

_UNITS = {
    "s": ("wall_seconds", 1.0),
    "m": ("wall_seconds", 60.0),
    "h": ("wall_seconds", 3600.0),
    "d": ("wall_seconds", 86400.0),
    "usd": ("money_usd", 1.0),
    "tokens": ("tokens", 1.0),
    "ktokens": ("tokens", 1e3),
    "mtokens": ("tokens", 1e6),
    "jobs": ("jobs", 1.0),
    "ds": ("device_seconds", 1.0),
    "dm": ("device_seconds", 60.0),
    "dh": ("device_seconds", 3600.0),
}
_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]+)")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that a run may use; None is no limit."""

    money_usd: float | None = None
    tokens: float | None = None
    device_seconds: float | None = None
    wall_seconds: float | None = None
    jobs: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """A budget from words such as `30m`, `1h30m`, `2h, 3usd, 500ktokens`, `200jobs`, `10dm` (device minutes).

        Example:
            >>> Budget.parse("1h30m, 2.5usd")
            Budget(money_usd=2.5, tokens=None, device_seconds=None, wall_seconds=5400.0, jobs=None)
        """
        amounts: dict[str, float] = {}
        words = text.lower().replace(",", " ").strip()
        if not words or _PART.sub("", words).strip():
            raise _not_a_budget(text)
        for number, unit in _PART.findall(words):
            if unit not in _UNITS:
                raise _not_a_budget(text)
            resource, factor = _UNITS[unit]
            amounts[resource] = amounts.get(resource, 0.0) + float(number) * factor
        if not all(amounts.values()):
            raise _not_a_budget(text)
        return cls(**amounts)

    def limits(self) -> dict[str, float]:
        """The resources that are limited."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def exceeded_by(self, cost: Cost) -> str | None:
        """The first resource of which `cost` takes more than there is, or None where all of it fits."""
        return next((name for name, limit in self.limits().items() if getattr(cost, name) > limit), None)


def show_amount(resource: str, amount: float) -> str:
    """An amount for a sentence.

    Example:
        >>> show_amount("wall_seconds", 5400), show_amount("money_usd", 0.5), show_amount("jobs", 12)
        ('1.5 h', '$0.50', '12 jobs')
    """
    if resource == "money_usd":
        return f"${amount:.2f}" if amount >= 0.005 or amount <= 0 else f"${amount:.2g}"
    if resource in ("tokens", "jobs"):
        return f"{amount:,.0f} {resource}"
    suffix = " of device time" if resource == "device_seconds" else ""
    for size, unit in ((3600, "h"), (60, "min")):
        if amount >= size:
            return f"{amount / size:.3g} {unit}{suffix}"
    return f"{amount:.3g} s{suffix}"


def show_enough(resource: str, amount: float) -> str:
    """An amount for a sentence that says what would do: rounded up, so that it does.

    Example:
        >>> show_enough("jobs", 56.1), show_enough("money_usd", 0.121), show_enough("wall_seconds", 100.4)
        ('57 jobs', '$0.13', '1.69 min')
    """
    if resource in ("tokens", "jobs"):
        return show_amount(resource, math.ceil(amount - 1e-6))
    if resource == "money_usd" and amount >= 0.01:
        return show_amount(resource, math.ceil(100 * amount - 1e-6) / 100)
    # Three digits are shown, two of small money.
    return show_amount(resource, amount * (1.1 if resource == "money_usd" else 1.01))


def _not_a_budget(text: str) -> ConfigurationError:
    return ConfigurationError(
        "`budget` must be amounts such as '30m', '1h30m, 2usd', '500ktokens' or '200jobs' "
        f"(units: {', '.join(_UNITS)}), got {text!r}."
    )
