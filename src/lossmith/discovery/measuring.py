"""Measuring programs in blocks beside control and canaries, and reading back what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lossmith.discovery.costs import Cost
from lossmith.discovery.proposers.base import ProgramLike
from lossmith.discovery.race.blocks import RungData, jobs_of_blocks, table
from lossmith.discovery.race.canaries import inspect
from lossmith.discovery.race.estimates import estimate
from lossmith.discovery.rungs.base import Block, HarnessError, Rung
from lossmith.discovery.setup import Setup
from lossmith.discovery.store.jobs import Job, Jobs
from lossmith.discovery.store.ledger import Ledger
from lossmith.discovery.store.preflight import Forecast, forecast
from lossmith.discovery.work import Workshop


@dataclass(kw_only=True)
class Measuring:
    """What search and ending share: blocks, tables, canaries, and what is left of the budget."""

    setup: Setup
    jobs: Jobs
    ledger: Ledger
    shop: Workshop
    programs: dict[str, ProgramLike]
    """Every program of the run by key, in order of admission."""

    def measure(
        self,
        step: int,
        rung: Rung,
        blocks: Sequence[Block],
        programs: Sequence[str],
        *,
        keep_back: Cost,
        name: str,
        left_out: range = range(0),
    ) -> RungData:
        """Evaluate programs in blocks, where that is not done yet, and look at the canaries.

        Args:
            step: The round, for the queue.
            rung: Where.
            blocks: Of one split, by number.
            programs: Keys; what is named twice is measured once.
            keep_back: What must be left over after each evaluation.
            name: For who waits; the rung's name is put behind it.
            left_out: Numbers of blocks that are not looked at.

        Returns:
            All that was measured on the rung's split up to the last of the blocks: a session that goes on knows more.

        Raises:
            BudgetExhausted: If an evaluation does not fit beside `keep_back`.
            HarnessError: If our own code broke or a canary is off.
            MachineOut: If the machine fails.
        """
        self.shop.do(step, self._jobs(rung, blocks, programs), keep_back=keep_back, name=f"{name}, {rung.name}")
        rows = self.jobs.evaluations(
            rung.name, rung.environment, blocks[0].split, before=blocks[-1].index + 1, left_out=left_out
        )
        data = table(rows, self.setup.control.key)
        self._watch(rung, data)
        return data

    def candidates(self, data: RungData) -> list[str]:
        """Candidates that were measured on a rung, in order of admission."""
        fixed = {self.setup.control.key, *(each.program.key for each in self.setup.canaries if each.program)}
        return [key for key in self.programs if key in data.fitness and key not in fixed]

    def forecast(self, finalists: int | None = None) -> Forecast:
        """What the run costs, as far as is known now; with fewer finalists where their number is given."""
        setup = self.setup
        settings = setup.settings if finalists is None else replace(setup.settings, finalists=finalists)
        return forecast(
            settings, setup.rungs, setup.grounds, setup.proposer, workers=setup.workers, measured=self.ledger.measured
        )

    def too_dear(self, cost: Cost) -> bool:
        """Whether `cost` is more than what is left of any resource."""
        return self.setup.budget.exceeded_by(self.ledger.spent() + cost) is not None

    def _jobs(self, rung: Rung, blocks: Sequence[Block], programs: Sequence[str]) -> list[Job]:
        canaries = [each.program.key for each in self.setup.canaries if each.program is not None]
        return jobs_of_blocks(
            rung.name,
            rung.environment,
            blocks,
            control=self.setup.control.key,
            canaries=canaries,
            programs=list(dict.fromkeys(programs)),
        )

    def _watch(self, rung: Rung, data: RungData) -> None:
        noise, _ = estimate(data, [key for key in self.programs if key in data.fitness])
        for each in inspect(rung.name, data, self.setup.canaries, noise):
            if each.state == "off":
                raise HarnessError(
                    f"Canary `{each.name}` ({each.kind}) is off on rung `{rung.name}`: its difference to the control "
                    f"is {each.mean:.3g} [{each.low:.3g}, {each.high:.3g}] over {each.blocks} blocks, so the rung does "
                    "not measure what it should."
                )
