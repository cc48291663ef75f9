"""Docstrings taken apart."""

import dataclasses
import inspect
import re

import pytest

import lossmith
from lossmith.explain import loss_facts
from lossmith.objectives import ObjectiveRecord, get_record


def test_the_parts_of_a_docstring():
    facts = loss_facts(get_record("lovasz"))
    assert facts.reference.startswith("Berman et al. 2018")
    assert facts.deviation.startswith("none")
    assert "Deviation" not in facts.reference
    assert "$$\\ell = \\frac{1}{|C|}" in facts.formula
    assert "Args" not in facts.formula
    assert facts.returns.startswith("One loss for the region, in [0, 1].")
    assert facts.meanings["classes"].endswith("drown the few that matter.")  # the last of three folded lines


@pytest.mark.parametrize("record", lossmith.list_losses(), ids=str)
def test_every_loss_has_a_formula_a_source_and_meanings(record):
    facts = loss_facts(record)
    assert facts.formula.count("$$") % 2 == 0
    assert "$$" in facts.formula
    assert facts.reference
    assert facts.deviation
    written = {name for name in record.hyperparameters if name not in record.module_hyperparameters}
    assert set(record.reads) | written == set(facts.meanings)
    for meaning in facts.meanings.values():
        assert meaning in re.sub(r"\s+", " ", inspect.getdoc(record.function) or "")


def test_a_loss_without_a_docstring_has_empty_facts():
    record = get_record("focal")
    bare = ObjectiveRecord(
        **{name: getattr(record, name) for name in ("name", "family", "item", "source", "reads", "hyperparameters")},
        batch_coupled=False,
        function=lambda token_logps: token_logps,
    )
    facts = loss_facts(bare)
    assert (facts.formula, facts.reference, facts.deviation, facts.meanings) == ("", "", "", {})


def test_relatives_as_names():
    assert loss_facts(get_record("lovasz")).related == (
        "jaccard", "dice", "generalized_dice", "generalized_cross_entropy"
    )  # fmt: skip
    assert loss_facts(get_record("dpop")).related == ("dpo", "cpo", "orpo")


def test_neither_its_own_name_nor_another_word_is_a_relative():
    def focal_loss(token_logps):
        """Do.

        Relatives:
            `focal` at `gamma=0`, `cross_entropy`, `mean` and `cross_entropy`; poly1 without marks.
        """

    record = dataclasses.replace(get_record("focal"), function=focal_loss)
    assert loss_facts(record).related == ("cross_entropy",)


@pytest.mark.parametrize("record", lossmith.list_losses(), ids=str)
def test_every_loss_has_relatives_in_the_catalogue(record):
    related = loss_facts(record).related
    assert related
    assert record.name not in related
    assert len(set(related)) == len(related)
    assert {get_record(name).name for name in related} == set(related)
