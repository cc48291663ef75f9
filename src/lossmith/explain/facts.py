"""The docstring of an objective, taken apart: formula, source, deviation, meaning of each hyper-parameter."""

import inspect
import re
from dataclasses import dataclass

from lossmith.objectives import ObjectiveRecord, list_losses

SECTIONS = ("Args", "Returns", "Raises", "Source", "Use when", "Relatives", "Elsewhere", "Example")


@dataclass(frozen=True, kw_only=True)
class LossFacts:
    """What the docstring of an objective says; empty where it says nothing."""

    formula: str
    """The paragraphs on the formula, equations as LaTeX between `$$`."""
    returns: str
    """Range and landmarks of the loss."""
    reference: str
    """Publication and equation."""
    deviation: str
    """What lossmith does that the publication does not."""
    meanings: dict[str, str]
    """Parameter -> its line."""
    use_when: str
    """The situation that the loss is for."""
    relatives: str
    """Its closest relatives and what tells them apart."""
    elsewhere: str
    """Where other frameworks differ: their name for it, default, sign, normalisation."""
    related: tuple[str, ...]
    """Objectives that `relatives` names, in its order."""


def loss_facts(record: ObjectiveRecord) -> LossFacts:
    """Take the docstring of an objective apart.

    Example:
        >>> from lossmith.objectives import get_record
        >>> loss_facts(get_record("focal")).meanings["gamma"]
        'How strongly confident tokens are discounted, >= 0; 0 is cross-entropy.'
        >>> loss_facts(get_record("focal")).related
        ('cross_entropy', 'poly1', 'mile')
    """
    document = inspect.getdoc(record.function) or ""
    start, *sections = re.split(rf"^({'|'.join(SECTIONS)}):\n", document, flags=re.MULTILINE)
    texts = dict(zip(sections[::2], sections[1::2], strict=True))
    reference, _, deviation = _one_paragraph(texts.get("Source", "")).partition("Deviation:")
    relatives = _one_paragraph(texts.get("Relatives", ""))
    return LossFacts(
        formula=start.partition("\n")[2].strip(),
        returns=_one_paragraph(texts.get("Returns", "")),
        reference=reference.strip(),
        deviation=deviation.strip(),
        meanings=_meanings(texts.get("Args", "")),
        use_when=_one_paragraph(texts.get("Use when", "")),
        relatives=relatives,
        elsewhere=_one_paragraph(texts.get("Elsewhere", "")),
        related=_named_objectives(relatives, but=record.name),
    )


def _one_paragraph(text: str) -> str:
    return " ".join(text.split())


def _named_objectives(text: str, *, but: str) -> tuple[str, ...]:
    """Objectives whose name stands in backticks, each once."""
    known = {record.name for record in list_losses()} - {but}
    return tuple(dict.fromkeys(word for word in re.findall(r"`(\w+)`", text) if word in known))


def _meanings(arguments: str) -> dict[str, str]:
    """Entries `name: text` at the section's indentation of 4, with their continuation lines."""
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", arguments, flags=re.MULTILINE)
    return {name: _one_paragraph(text) for name, text in entries}
