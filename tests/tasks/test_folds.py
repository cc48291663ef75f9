"""Folds: each row is tested once, classes are even, equal texts stay together, one seed is one division."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks import ClassificationTask, Example, draw_shots, fold_task, load_task, rows_per_class
from lossmith.tasks._splits import fold_rows, text_key


def task_of(counts, **settings):
    rows = [Example(f"text {label} {row}", label) for label, count in enumerate(counts) for row in range(count)]
    random.Random(5).shuffle(rows)
    names = tuple(f"class {label}" for label in range(len(counts)))
    return ClassificationTask(name="uneven", label_names=names, train=tuple(rows), **settings)


def test_every_row_of_every_split_is_tested_once_in_its_order():
    task = load_task("cr")
    rows = [*task.train, *task.validation, *task.test]
    folds = [fold_task(task, fold=fold, folds=4) for fold in range(4)]
    assert Counter(row for fold in folds for row in fold.test) == Counter(rows)
    places = {row: place for place, row in enumerate(rows)}
    for fold in folds:
        assert Counter((*fold.train, *fold.test)) == Counter(rows)
        for part in (fold.train, fold.test):
            order = [places[row] for row in part]
            assert order == sorted(order)
        assert fold.validation == ()


def test_folds_are_stratified_to_one_row():
    task = task_of((61, 30, 7))
    tested = [rows_per_class(fold_task(task, fold=fold, folds=4).test, 3) for fold in range(4)]
    for label, count in enumerate((61, 30, 7)):
        assert {counts[label] for counts in tested} <= {count // 4, count // 4 + 1}
    assert sorted(map(sum, tested)) == [24, 24, 25, 25]


def test_what_a_fold_keeps_and_what_it_says_of_itself():
    task = replace(load_task("cr"), warnings=("seen",))
    fold = fold_task(task, fold=1, folds=4)
    warnings = ("Of the whole set, before its division into folds: seen",)
    assert (fold.name, fold.warnings, fold.licence, fold.source) == ("cr", warnings, task.licence, task.source)
    assert fold_task(replace(fold, test=()), fold=0, folds=3).warnings == warnings
    assert (fold.label_names, fold.fold_of, task.fold_of) == (task.label_names, task.fingerprint, "")
    prints = {fold_task(task, fold=number, folds=4).fingerprint for number in range(4)}
    assert len({*prints, task.fingerprint}) == 5


def test_repeats_of_train_in_test_are_gone_with_the_splits(tmp_path):
    for split, rows in {"train": 30, "test": 20}.items():
        texts = [f"text {row},{row % 2}" for row in range(rows)] + ["text 1,0"] * (split == "train")
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *texts]), encoding="utf-8")
    task = load_task(tmp_path)
    assert task.warnings == ("20 of 20 test rows repeat a text of train.", "1 texts occur with more than one label.")
    for number in range(3):
        fold = fold_task(task, fold=number, folds=3)
        assert not {text_key(row.text) for row in fold.train} & {text_key(row.text) for row in fold.test}
        assert fold.warnings == (
            "Of the whole set, before its division into folds: 1 texts occur with more than one label.",
        )


def test_a_known_division_does_not_move():
    folds = fold_rows([f"text {row}" for row in range(12)], [0, 1] * 6, ("a", "b"), folds=3, seed=2048)
    assert folds == [1, 0, 1, 1, 2, 0, 0, 1, 2, 2, 0, 2]


def test_a_seed_is_a_division_and_global_state_is_not():
    task = task_of((40, 40))
    first = fold_task(task, fold=0, folds=4)
    np.random.seed(0)
    random.seed(0)
    state = np.random.get_state()[1].tolist()
    assert fold_task(task, fold=0, folds=4, seed=2048) == first
    assert np.random.get_state()[1].tolist() == state
    assert len({fold_task(task, fold=0, folds=4, seed=seed).fingerprint for seed in range(8)}) == 8


def test_equal_texts_and_equal_pairs_share_a_fold():
    texts = [f"text {row % 20}" for row in range(40)] + [f" TEXT  {row}" for row in range(20)]
    task = ClassificationTask(
        name="t", label_names=("a", "b"), train=tuple(Example(text, row % 2) for row, text in enumerate(texts))
    )
    paired = replace(task, train=tuple(replace(row, pair=str(place)) for place, row in enumerate(task.train)))
    for fold in range(4):
        part = fold_task(task, fold=fold, folds=4)
        assert not {text_key(row.text) for row in part.train} & {text_key(row.text) for row in part.test}
        assert len(part.test) == 15
    split = [{text_key(row.text) for row in fold_task(paired, fold=fold, folds=4).test} for fold in range(4)]
    assert set.intersection(split[0], split[1])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, 30), min_size=2, max_size=6), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_no_fold_lacks_a_class_on_either_side(counts, folds, seed):
    task = task_of([count + folds - 2 for count in counts])
    for fold in range(folds):
        part = fold_task(task, fold=fold, folds=folds, seed=seed)
        assert 0 not in rows_per_class(part.train, len(counts))
        assert 0 not in rows_per_class(part.test, len(counts))


def test_a_fold_without_a_class_is_one_sentence():
    with pytest.raises(DataError) as caught:
        fold_task(task_of((30, 3, 9)), fold=0, folds=4)
    assert str(caught.value) == (
        "Each class must have at least as many different texts as there are `folds`, 4, or a fold is without it, but "
        "'class 1' has 3: take at most 3 folds, add rows or remove the class."
    )
    with pytest.raises(DataError, match=r"'class 1' has 1: add rows or remove the class\.$"):
        fold_task(task_of((30, 1)), fold=0, folds=2)
    with pytest.raises(DataError, match="'class 5' has 2, 'class 1' has 3 and 2 more classes: take at most 2 folds"):
        fold_task(task_of((30, 3, 2, 2, 2, 2, 3, 3)), fold=0, folds=4)


def test_repeated_texts_do_not_make_a_class_larger():
    rows = (*(Example(f"text {row}", 0) for row in range(9)), *(Example("same", 1) for _ in range(9)))
    task = ClassificationTask(name="t", label_names=("a", "b"), train=rows)
    with pytest.raises(DataError, match="'b' has 1: add rows"):
        fold_task(task, fold=0, folds=3)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"folds": 1}, "`folds` must be an integer >= 2, got 1"),
        ({"folds": True}, "`folds` must be an integer >= 2, got True"),
        ({"fold": 4}, "`fold` must be less than `folds`, 4, got 4: folds are counted from 0"),
        ({"fold": -1}, "`fold` must be an integer >= 0, got -1"),
        ({"seed": -1}, "`seed` must be an integer >= 0, got -1"),
    ],
)
def test_wrong_numbers_are_refused(numbers, message):
    with pytest.raises(ConfigurationError, match=message):
        fold_task(load_task("cr"), **{"fold": 0, "folds": 4, **numbers})


def test_a_fold_of_a_fold_leaves_the_outer_test_rows_alone():
    outer = fold_task(load_task("cr"), fold=0, folds=4)
    inner = fold_task(replace(outer, test=()), fold=0, folds=3)
    assert Counter((*inner.train, *inner.test)) == Counter(outer.train)


@pytest.mark.parametrize("draw", [{}, {"stratified": False}])
def test_shots_of_a_fold_come_from_its_train_rows_and_are_the_same_each_time(draw):
    def drawn(seed):
        fold = fold_task(load_task("cr"), fold=seed % 4, folds=4)
        return fold, [fold.train[row] for row in draw_shots(fold, seed=seed, shots_total=20, **draw)]

    for seed in range(5):
        fold, shots = drawn(seed)
        assert drawn(seed) == (fold, shots)
        assert len(shots) == 20
        assert not {text_key(row.text) for row in shots} & {text_key(row.text) for row in fold.test}
        if not draw:
            assert rows_per_class(shots, 2) == [7, 13]
