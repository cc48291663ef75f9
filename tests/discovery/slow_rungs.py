"""Simulated rungs that hang or die, in a module that another process can import."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from lossmith.discovery.race.simulation import SimulatedRung
from lossmith.discovery.rungs.base import Metrics


@dataclass(frozen=True, kw_only=True)
class Slow(SimulatedRung):
    """Hangs once in one block and dies once in another; with `always` it does so again and again."""

    folder: Path
    apart: bool = True
    hangs: int = -1
    dies: int = -1
    always: bool = False

    def evaluate(self, program, block):
        """See `Rung`."""
        with (self.folder / "processes").open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        (self.folder / "environment").write_text("\n".join(sorted(os.environ)))
        for name, index in (("hangs", self.hangs), ("dies", self.dies)):
            if block.index == index and (self.always or not (self.folder / name).exists()):
                (self.folder / name).touch()
                os._exit(9) if name == "dies" else time.sleep(600)
        found = super().evaluate(program, block)
        return Metrics(fitness=found.fitness, values=found.values)

    def processes(self):
        """Of all evaluations, in the order in which they began."""
        return [int(line) for line in (self.folder / "processes").read_text().split()]
