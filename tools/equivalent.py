"""Mutations that cannot change any result beyond rounding, each with the reason.

The key is the file (from `src/lossmith`), the function and the text that `mutate.py` prints. A mutation belongs here
only if no input within the contract tells it apart; a mutation that no test sees is a hole in the tests.
"""

EQUIVALENT: dict[tuple[str, str, str], str] = {}
