"""Where all randomness of a run comes from: generators that are computed from names, never carried along.

A generator that is carried along has a state that a kill can lose. These have none: what a step draws depends on the
run's seed, the step and the purpose only, so a resumed run draws what an undisturbed one would have drawn.
"""

import hashlib
import json

import numpy as np


def draw(run_seed: int, step: int, purpose: str) -> np.random.Generator:
    """The generator of one purpose in one step of one run: Philox, keyed by a hash of the three.

    Example:
        >>> draw(0, 3, "audit").random() == draw(0, 3, "audit").random()
        True
        >>> draw(0, 3, "audit").random() == draw(0, 4, "audit").random()
        False
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(run_seed, step, purpose)[:16], "little")))


def draw_seed(run_seed: int, step: int, purpose: str) -> int:
    """A seed of 31 bits for those who take an integer, such as a trainer.

    Example:
        >>> 0 <= draw_seed(0, 3, "block") < 2**31
        True
    """
    return int.from_bytes(_digest(run_seed, step, purpose)[:4], "little") & 0x7FFFFFFF


def _digest(run_seed: int, step: int, purpose: str) -> bytes:
    # JSON keeps (1, 23) and (12, 3) apart, and "a" of step 1 from every other purpose.
    return hashlib.sha256(json.dumps([run_seed, step, purpose]).encode()).digest()
