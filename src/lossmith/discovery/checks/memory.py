"""The programs that a run knows already: duplicates are found among them before anything is trained."""

import numpy as np

from lossmith.discovery.identity import DUPLICATE, Fingerprint, fingerprint
from lossmith.discovery.program import Program


class Memory:
    """Names of known programs by exact key, and by fingerprint at public and at secret probe points."""

    def __init__(self, family: str, *, secret_seed: int = 0):
        self.family = family
        self.seeds = (0,) if secret_seed == 0 else (0, secret_seed)
        self._by_key: dict[str, str] = {}
        self._names: list[str] = []
        self._vectors: dict[int, list[np.ndarray]] = {seed: [] for seed in self.seeds}
        self._stacked: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, name: str, program: Program) -> None:
        """Take a program among the known ones; the first name of a key stays."""
        if program.key in self._by_key:
            return
        self._by_key[program.key] = name
        prints = [fingerprint(program, seed=seed) for seed in self.seeds]
        if all(prints):
            self._names.append(name)
            for seed, found in zip(self.seeds, prints, strict=True):
                assert found is not None
                self._vectors[seed].append(found.vector)
            self._stacked = None

    def same_key(self, program: Program) -> str | None:
        """Name of the known program that is the same by algebra."""
        return self._by_key.get(program.key)

    def same_behaviour(self, program: Program, found: Fingerprint) -> tuple[str, float] | None:
        """Name and distance of the known program that does the same, at every set of probes."""
        if not self._names:
            return None
        if self._stacked is None:
            self._stacked = np.stack(self._vectors[0])
        apart = np.linalg.norm(self._stacked - found.vector, axis=1)
        best = int(apart.argmin())
        if apart[best] >= DUPLICATE:
            return None
        for seed in self.seeds[1:]:
            other = fingerprint(program, seed=seed)
            if other is None or np.linalg.norm(self._vectors[seed][best] - other.vector) >= DUPLICATE:
                return None
        return self._names[best], float(apart[best])
