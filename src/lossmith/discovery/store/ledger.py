"""What a run may spend and has spent: reserved before it is spent, settled after, and what a kill lost counts too."""

import math
from collections.abc import Mapping

from lossmith.discovery.costs import RESOURCES, ZERO, Budget, Cost, show_amount, show_enough
from lossmith.discovery.store.database import Database
from lossmith.errors import LossmithError

PROPOSER = "proposer"
"""Kind of the entries of a proposer's calls; those of its arms follow it after a slash."""
_KINDS = ("reserved", "settled", "lost")
_HELD = [name for name in RESOURCES if name != "wall_seconds"]  # the clock of the sessions counts the wall's time


class BudgetExhausted(LossmithError):
    """What comes next does not fit in what is left; everything before it is kept."""

    def __init__(self, resource: str, spent: float, limit: float, next_cost: float, what: str = "what comes next"):
        self.resource = resource
        ends = "is used up" if spent >= limit else "does not suffice"
        super().__init__(
            f"The budget of {show_amount(resource, limit)} {ends}: {show_amount(resource, spent)} are spent and {what} "
            f"needs {show_amount(resource, next_cost)}, so {show_enough(resource, spent + next_cost)} at least."
        )


class Ledger:
    """The accounts of one run against one budget."""

    def __init__(self, database: Database, budget: Budget):
        self._database = database
        self.budget = budget
        self._used = self._total(_KINDS)
        self._begun: set[str] = set()
        self._sums: dict[str, Cost] = {}
        rows = database.rows(
            "SELECT rung, device_seconds, wall_seconds FROM evaluation WHERE status = 'ok' ORDER BY finished_at"
        )
        for rung, device, wall in rows:
            self.learn(rung, Cost(device_seconds=device, wall_seconds=wall))

    def spent(self) -> Cost:
        """All that is settled, lost or reserved, and the wall time of all sessions."""
        return self._used + Cost(wall_seconds=self._database.wall_seconds())

    def check(self, cost: Cost, what: str = "what comes next") -> None:
        """Say no where `cost` does not fit in what is left.

        Args:
            cost: Of what comes next.
            what: How a sentence names it.

        Raises:
            BudgetExhausted: Names the first resource that is short.
        """
        spent = self.spent()
        short = self.budget.exceeded_by(spent + cost)
        if short is not None:
            limit = self.budget.limits()[short]
            raise BudgetExhausted(short, getattr(spent, short), limit, getattr(cost, short), what)

    def reserve(self, entry: str, kind: str, cost: Cost) -> None:
        """Put `cost` aside under a name, before it is spent; a name that was lost to a kill may be used again.

        Raises:
            BudgetExhausted: If it does not fit; nothing is reserved then.
        """
        self.check(cost)
        columns = ", ".join(f"{name}_reserved" for name in RESOURCES)
        update = ", ".join(f"{name}_reserved = excluded.{name}_reserved" for name in RESOURCES)
        amounts = [getattr(cost, name) if name in _HELD else 0.0 for name in RESOURCES]
        with self._database.transaction() as connection:
            connection.execute(
                f"INSERT INTO ledger (entry, kind, open, {columns}) VALUES (?, ?, 1, {', '.join('?' * len(amounts))}) "
                f"ON CONFLICT (entry) DO UPDATE SET open = 1, {update}",
                (entry, kind, *amounts),
            )
        self._used = self._used + _held(cost)

    def left(self, kept: Cost) -> Cost:
        """Money and tokens that are left beside `kept`; infinite where they are not limited, and never below 0."""
        spent, limits = self.spent() + kept, self.budget.limits()
        money = limits.get("money_usd", math.inf) - spent.money_usd
        # A rounding error must not make what is left more than that.
        return Cost(
            money_usd=max(0.0, money * (1 - 1e-12)),
            tokens=max(0.0, limits.get("tokens", math.inf) - spent.tokens),
        )

    def divide(self, entry: str, by_arm: Mapping[str, Cost]) -> None:
        """Put what a settled call took into entries of its arms, which hold their own time too."""
        columns = ", ".join(f"{name}_settled" for name in RESOURCES)
        taken = ", ".join(f"{name}_settled = {name}_settled - ?" for name in RESOURCES)
        with self._database.transaction() as connection:
            for arm, cost in by_arm.items():
                amounts = [getattr(cost, name) for name in RESOURCES]
                connection.execute(
                    f"INSERT INTO ledger (entry, kind, open, {columns}) "
                    f"VALUES (?, ?, 0, {', '.join('?' * len(amounts))})",
                    (f"{entry}/{arm}", f"{PROPOSER}/{arm}", *amounts),
                )
                connection.execute(f"UPDATE ledger SET {taken} WHERE entry = ?", (*amounts, entry))

    def settle(self, entry: str, reserved: Cost, actual: Cost) -> None:
        """Replace what was put aside by what was spent."""
        changes = ", ".join(f"{name}_reserved = 0, {name}_settled = {name}_settled + ?" for name in RESOURCES)
        with self._database.transaction() as connection:
            connection.execute(
                f"UPDATE ledger SET open = 0, {changes} WHERE entry = ?",
                (*(getattr(actual, name) for name in RESOURCES), entry),
            )
        self._used = self._used + _held(actual) + -1.0 * _held(reserved)

    def write_off(self) -> None:
        """Count what was reserved when a process was killed as lost: nobody knows how much of it was spent.

        Nothing is lost of a proposer's call: it is repeated, its replies are stored, and each is counted once when the
        repetition is settled. A request that was under way has no stored reply, is asked again and is counted once too.
        """
        # A job that is done again is one job; its first attempt is known from its attempts.
        changes = ", ".join(
            f"{name}_lost = {name}_lost + "
            + ("0" if name == "jobs" else f"CASE WHEN kind = '{PROPOSER}' THEN 0 ELSE {name}_reserved END")
            + f", {name}_reserved = 0"
            for name in RESOURCES
        )
        with self._database.transaction() as connection:
            connection.execute(f"UPDATE ledger SET {changes} WHERE open = 1")
        self._used = self._total(_KINDS)

    def by_kind(self) -> dict[str, Cost]:
        """What was settled or lost, per kind of entry, for the report."""
        columns = ", ".join(f"SUM({name}_settled + {name}_lost)" for name in RESOURCES)
        rows = self._database.rows(f"SELECT kind, {columns} FROM ledger GROUP BY kind ORDER BY kind")
        return {row[0]: ZERO + Cost(**dict(zip(RESOURCES, row[1:], strict=True))) for row in rows}

    def learn(self, rung: str, actual: Cost) -> None:
        """Take the times of one more finished evaluation into the rung's mean."""
        cost = Cost(jobs=1, device_seconds=actual.device_seconds, wall_seconds=actual.wall_seconds)
        if rung not in self._begun:
            self._begun.add(rung)
        else:
            self._sums[rung] = self._sums.get(rung, ZERO) + cost

    def measured(self, rung: str) -> Cost | None:
        """Mean cost of a finished evaluation on a rung, without the first; None before the second.

        The first also reads model and data, and may train a reward: no other one will.
        """
        sums = self._sums.get(rung)
        return None if sums is None else (1 / sums.jobs) * sums

    def _total(self, kinds: tuple[str, ...]) -> Cost:
        sums = ", ".join(f"COALESCE(SUM({' + '.join(f'{name}_{kind}' for kind in kinds)}), 0)" for name in _HELD)
        return ZERO + Cost(**dict(zip(_HELD, self._database.rows(f"SELECT {sums} FROM ledger")[0], strict=True)))


def _held(cost: Cost) -> Cost:
    return Cost(**{name: getattr(cost, name) for name in _HELD})
