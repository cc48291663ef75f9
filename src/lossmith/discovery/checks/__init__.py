"""Checks of candidates: what every loss must do, what it is like, and whether it is known."""

from lossmith.discovery.checks.battery import CHECKS, Candidate
from lossmith.discovery.checks.check import AGAINST, check, check_program
from lossmith.discovery.checks.memory import Memory
from lossmith.discovery.checks.properties import margin_line, properties_of
from lossmith.discovery.checks.verdict import Verdict

__all__ = [
    "AGAINST",
    "CHECKS",
    "Candidate",
    "Memory",
    "Verdict",
    "check",
    "check_program",
    "margin_line",
    "properties_of",
]
