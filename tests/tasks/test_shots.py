"""The draw of a block's training rows: seeded, disjoint, balanced as asked, free of global state."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossmith.errors import ConfigurationError, DataError
from lossmith.tasks import ClassificationTask, Example, draw_shots
from lossmith.tasks._splits import allocate

COUNTS = (60, 30, 9, 1)


def task_of(counts):
    rows = [(f"text {label} {row}", label) for label, count in enumerate(counts) for row in range(count)]
    random.Random(3).shuffle(rows)
    return ClassificationTask(
        name="uneven",
        label_names=tuple(f"class {label}" for label in range(len(counts))),
        train=tuple(Example(text, label) for text, label in rows),
    )


TASK = task_of(COUNTS)


def drawn_counts(shots):
    counts = Counter(TASK.train[row].label for row in shots)
    return [counts[label] for label in range(len(COUNTS))]


def test_shots_per_class_are_distinct_and_mixed():
    task = task_of((50, 40, 30))
    shots = draw_shots(task, seed=1, shots_per_class=20)
    assert len(shots) == len(set(shots)) == 60
    assert all(type(row) is int for row in shots)
    labels = [task.train[row].label for row in shots]
    assert Counter(labels) == {0: 20, 1: 20, 2: 20}
    assert labels != sorted(labels)
    assert list(shots) != sorted(shots)


def test_a_known_draw_does_not_move():
    assert draw_shots(TASK, seed=0, shots_total=6) == (33, 0, 71, 22, 36, 30)


@pytest.mark.parametrize(
    "sizes", [{"shots_per_class": 1}, {"shots_total": 50}, {"shots_total": 50, "stratified": False}, {}]
)
def test_a_seed_is_a_draw_and_global_state_is_not(sizes):
    first = draw_shots(TASK, seed=5, **sizes)
    np.random.seed(0)
    random.seed(0)
    state = np.random.get_state()[1].tolist()
    assert draw_shots(TASK, seed=5, **sizes) == first
    assert np.random.get_state()[1].tolist() == state
    assert len({draw_shots(TASK, seed=seed, **sizes) for seed in range(10)}) == 10


def test_no_number_means_the_whole_train_set_shuffled():
    shots = draw_shots(TASK, seed=2)
    assert sorted(shots) == list(range(100)) != list(shots)


def test_every_row_can_be_drawn():
    seen = {row for seed in range(60) for row in draw_shots(task_of((10, 10)), seed=seed, shots_per_class=2)}
    assert seen == set(range(20))


def test_fewer_shots_are_a_part_of_more():
    task = task_of((50, 50))
    few, more = (draw_shots(task, seed=4, shots_per_class=number) for number in (5, 20))
    assert set(few) < set(more)


@pytest.mark.parametrize(
    ("total", "expected"),
    [(4, [1, 1, 1, 1]), (5, [2, 1, 1, 1]), (10, [5, 3, 1, 1]), (50, [30, 15, 4, 1]), (100, [60, 30, 9, 1])],
)
def test_a_stratified_total_follows_the_classes(total, expected):
    assert drawn_counts(draw_shots(TASK, seed=0, shots_total=total)) == expected


def test_an_unstratified_total_may_miss_a_class():
    draws = [drawn_counts(draw_shots(TASK, seed=seed, shots_total=3, stratified=False)) for seed in range(50)]
    assert all(sum(counts) == 3 for counts in draws)
    assert any(counts[3] == 0 for counts in draws)
    assert 1.5 < np.mean([counts[0] for counts in draws]) < 2.1


@given(st.lists(st.integers(2, 200), min_size=1, max_size=12), st.data(), st.sampled_from([0, 1]))
def test_allocation_is_whole_bounded_and_near_its_share(counts, data, keep):
    total = data.draw(st.integers(len(counts), sum(counts) - keep * len(counts)))
    given_rows = allocate(counts, total, keep=keep)
    assert sum(given_rows) == total
    for count, rows in zip(counts, given_rows, strict=True):
        assert 1 <= rows <= count - keep
    shares = [total * count / sum(counts) for count in counts]
    if all(1 <= share <= count - keep for share, count in zip(shares, counts, strict=True)):
        assert all(abs(rows - share) < 1 for rows, share in zip(given_rows, shares, strict=True))


def test_too_few_rows_of_a_class_are_told_with_all_counts():
    with pytest.raises(DataError) as caught:
        draw_shots(TASK, seed=0, shots_per_class=20)
    assert str(caught.value) == (
        "Class 'class 3' has 1 row to train on (validation and test rows do not count) and 20 shots per class are "
        "wanted: take fewer, give `shots_total` or add rows; "
        "rows per class: class 3: 1, class 2: 9, class 1: 30, class 0: 60."
    )


def test_many_classes_are_told_by_the_smallest():
    with pytest.raises(DataError, match=r"class 11: 13 and 8 larger classes\.$"):
        draw_shots(task_of(range(2, 22)), seed=0, shots_per_class=20)


@pytest.mark.parametrize("stratified", [True, False])
def test_too_few_rows_in_all_are_told(stratified):
    with pytest.raises(DataError, match="has 100 train rows, `shots_total` wants 101; rows per class: class 3: 1, "):
        draw_shots(TASK, seed=0, shots_total=101, stratified=stratified)


def test_fewer_shots_than_classes_are_refused():
    with pytest.raises(DataError, match="`shots_total` must be at least the number of classes, 4, got 3: raise it"):
        draw_shots(TASK, seed=0, shots_total=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots_per_class": 2, "shots_total": 8}, "not both, got 2 and 8"),
        ({"shots_per_class": 0}, "`shots_per_class` must be an integer >= 1, got 0"),
        ({"shots_total": 2.5}, "`shots_total` must be an integer >= 1, got 2.5"),
        ({"shots_total": True}, "`shots_total` must be an integer >= 1, got True"),
        ({"seed": -1}, "`seed` must be an integer >= 0, got -1"),
        ({"shots_per_class": 2, "stratified": False}, "`stratified=False` acts on `shots_total` only"),
        ({"stratified": False}, "`stratified=False` acts on `shots_total` only"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        draw_shots(TASK, **{"seed": 0, **settings})
