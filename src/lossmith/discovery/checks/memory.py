"""The programs that a run knows already: duplicates are found among them before anything is trained."""

from functools import partial

import numpy as np

from lossmith.discovery.identity import DUPLICATE, Fingerprint, fingerprint, fingerprint_at, same_beyond
from lossmith.discovery.program import Program


class Memory:
    """Names of known programs by exact key and by fingerprint; `secret_seed` gives a run probe points of its own."""

    def __init__(self, family: str, *, secret_seed: int = 0):
        self.family = family
        self.seeds = () if secret_seed == 0 else (secret_seed,)
        """Of the secret probe points."""
        self._by_key: dict[str, str] = {}
        self._names: list[str] = []
        self._programs: list[Program] = []
        self._vectors: list[np.ndarray] = []
        self._stacked: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, name: str, program: Program) -> None:
        """Take a program among the known ones; the first name of a key stays."""
        if program.key in self._by_key:
            return
        self._by_key[program.key] = name
        found = fingerprint(program)
        if found is not None:
            self._names.append(name)
            self._programs.append(program)
            self._vectors.append(found.vector)
            self._stacked = None

    def same_key(self, program: Program) -> str | None:
        """Name of the known program that is the same by algebra."""
        return self._by_key.get(program.key)

    def same_behaviour(self, program: Program, found: Fingerprint) -> tuple[str, float] | None:
        """Name and distance of the known program that does the same, at the secret probes and farther out too."""
        if not self._names:
            return None
        if self._stacked is None:
            self._stacked = np.stack(self._vectors)
        apart = np.linalg.norm(self._stacked - found.vector, axis=1)
        close = np.flatnonzero(apart < DUPLICATE)
        for place in close[np.argsort(apart[close], kind="stable")].tolist():
            known = self._programs[place]
            if same_beyond(self.family, partial(fingerprint_at, program), partial(fingerprint_at, known), self.seeds):
                return self._names[place], float(apart[place])
        return None
