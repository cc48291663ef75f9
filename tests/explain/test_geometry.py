import math

import numpy as np
import pytest

from lossmith.errors import DataError
from lossmith.explain import embedding_geometry
from lossmith.explain import geometry as module


def draw(count=23, dim=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dim)) + np.eye(dim)[0], rng.integers(0, 3, count)


def unit_rows(rows):
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows.tolist()]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def by_hand(rows, labels, neighbours):
    """The five measures by loops over pairs, from their papers."""
    rows, labels = unit_rows(rows), labels.tolist()
    everyone = range(len(rows))
    purity, near, gauss, cosines, silhouettes = [], [], [], [], []
    for i in everyone:
        others = sorted((j for j in everyone if j != i), key=lambda j: -cosine(rows[i], rows[j]))
        purity.append(sum(labels[j] == labels[i] for j in others[:neighbours]) / neighbours)
        for j in others:
            squared = sum((x - y) ** 2 for x, y in zip(rows[i], rows[j], strict=True))
            gauss.append(math.exp(-2 * squared))
            cosines.append(cosine(rows[i], rows[j]))
            if labels[i] == labels[j]:
                near.append(squared)
        gaps = {label: [1 - cosine(rows[i], rows[j]) for j in others if labels[j] == label] for label in set(labels)}
        own = gaps.pop(labels[i])
        if not own:
            silhouettes.append(0.0)
            continue
        inside, outside = sum(own) / len(own), min(sum(gap) / len(gap) for gap in gaps.values())
        silhouettes.append((outside - inside) / max(inside, outside))

    def mean(values):
        return sum(values) / len(values)

    return mean(purity), mean(silhouettes), mean(near), math.log(mean(gauss)), mean(cosines)


@pytest.mark.parametrize("rows_at_once", [1024, 7])
def test_all_measures_are_those_of_the_papers(monkeypatch, rows_at_once):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", rows_at_once)
    rows, labels = draw()
    (found,) = embedding_geometry({"focal": 3 * rows}, labels, neighbours=4).runs
    shown = (found.purity, found.silhouette, found.alignment, found.uniformity, found.anisotropy)
    assert shown == pytest.approx(by_hand(rows, labels, 4), abs=1e-10)
    assert found.examples == len(rows)


def test_every_model_and_seed_has_a_row_and_a_point():
    (a, labels), (b, other_labels) = draw(seed=1), draw(seed=2)
    found = embedding_geometry(
        {"cross_entropy": {3: a, 5: b}, "focal": {5: b}}, {3: labels, 5: other_labels}, neighbours=3
    )
    frame = found.frame()
    assert list(zip(frame["model"], frame["seed"], strict=True)) == [
        ("cross_entropy", 3), ("cross_entropy", 5), ("focal", 5),
    ]  # fmt: skip
    assert frame["purity"][1] == frame["purity"][2] != frame["purity"][0]
    assert len(found.plot(baseline="focal").axes) == 5


def test_what_the_examples_do_not_define_is_nan():
    rows, _ = draw(6)
    (alone,) = embedding_geometry({"a": rows}, np.arange(6), neighbours=2).runs
    assert math.isnan(alone.alignment)
    assert math.isnan(alone.silhouette)
    assert alone.purity == 0
    (one,) = embedding_geometry({"a": rows}, np.zeros(6, dtype=int), neighbours=2).runs
    assert math.isnan(one.silhouette)
    assert one.purity == 1


def test_mistakes_are_named():
    rows, labels = draw(6)
    with pytest.raises(DataError, match=r"`neighbours` must be below the number of examples, 6 of 'a', seed 0, got 6"):
        embedding_geometry({"a": rows}, labels, neighbours=6)
    with pytest.raises(DataError, match=r"`labels` must have one entry per example of 'a', seed 0, \(6,\), got \(5,\)"):
        embedding_geometry({"a": rows}, labels[:5])
    with pytest.raises(DataError, match="`embeddings` of 'a', seed 0, must hold finite numbers only"):
        embedding_geometry({"a": np.where(rows > 1, np.nan, rows)}, labels)
    with pytest.raises(DataError, match="at least one model"):
        embedding_geometry({}, labels)
    with pytest.raises(DataError, match=r"`labels` has nothing for 'a', seed 4"):
        embedding_geometry({"a": {4: rows}}, {0: labels})
