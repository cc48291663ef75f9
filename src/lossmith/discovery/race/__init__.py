"""From rows to decisions: paired differences, shrunken estimates, halving, audit, canaries and the final claim.

Everything here is a pure function of rows, settings and the run's seed, so that each decision can be made again.
"""
