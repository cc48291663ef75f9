import numpy as np
import pytest

from lossmith.errors import DataError
from lossmith.explain import Proxies, class_means, embedding_maps


def draw(count=40, dim=6):
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, count)
    return rng.normal(size=(count, dim)) + 2 * np.eye(dim)[labels], labels


def test_pca_is_the_plane_of_largest_spread_with_the_proxies_in_it():
    rows, labels = draw()
    proxies = Proxies(vectors=5 * np.eye(6)[:3].repeat(2, 0) + 0.1, labels=np.array([0, 0, 1, 1, 2, 2]))
    (found,) = embedding_maps({"soft_triple": rows}, labels, method="pca", proxies={"soft_triple": proxies}).maps
    together = np.concatenate([rows, proxies.vectors])
    together = together / np.sqrt((together**2).sum(1, keepdims=True))
    values, vectors = np.linalg.eigh(np.cov(together.T))
    plane = (together - together.mean(0)) @ vectors[:, [-1, -2]]
    shown = np.concatenate([found.points, found.proxies])
    for axis in range(2):
        np.testing.assert_allclose(abs(shown[:, axis]), abs(plane[:, axis]), atol=1e-9)
    assert found.explained == pytest.approx(values[-2:].sum() / values.sum())
    assert found.proxy_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.proxy_kind == "proxies"


def test_a_model_without_proxies_gets_the_mean_direction_of_each_class():
    rows, labels = draw()
    means = class_means(rows, labels)
    for label, vector in zip(means.labels, means.vectors, strict=True):
        own = [row / np.sqrt((row**2).sum()) for row, other in zip(rows, labels, strict=True) if other == label]
        np.testing.assert_allclose(vector, sum(own) / len(own))
    (found,) = embedding_maps({"cross_entropy": rows}, labels, method="pca").maps
    assert found.proxy_kind == "class means"
    assert len(found.proxies) == 3


def test_tsne_keeps_separate_classes_apart_and_is_the_same_twice():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    rows = 20 * np.eye(6)[labels] + rng.normal(size=(60, 6))
    first, second = (embedding_maps({"focal": rows}, labels, perplexity=10, seed=3).maps[0] for _ in range(2))
    np.testing.assert_array_equal(first.points, second.points)
    gaps = np.linalg.norm(first.points[:, None] - first.points[None], axis=-1) + np.diag([np.inf] * 60)
    assert (labels[gaps.argmin(1)] == labels).all()
    for label, place in zip(first.proxy_labels, first.proxies, strict=True):
        assert labels[np.linalg.norm(first.points - place, axis=1).argmin()] == label


def test_frame_and_plot_hold_every_point():
    rows, labels = draw()
    found = embedding_maps(
        {"cross_entropy": rows, "focal": -rows}, labels, method="pca", label_names=["$x$", "_b", "c"]
    )
    frame = found.frame()
    assert len(frame) == 2 * (40 + 3)
    assert set(frame["kind"]) == {"example", "class means"}
    assert set(frame["label"]) == {"$x$", "_b", "c"}
    figure = found.plot()
    assert len(figure.axes) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [r"\$x\$", "_b", "c"]


def test_many_classes_have_no_legend():
    rows = np.random.default_rng(0).normal(size=(200, 4))
    found = embedding_maps({"a": rows}, np.arange(200) % 77, method="pca")
    assert not found.plot().legends


def test_mistakes_are_named():
    rows, labels = draw()
    with pytest.raises(DataError, match="`method` must be one of tsne, pca, got 'umap'"):
        embedding_maps({"a": rows}, labels, method="umap")
    with pytest.raises(DataError, match="`proxies` of 'a' must be \\[proxies, 6\\] with a label each"):
        embedding_maps(
            {"a": rows}, labels, method="pca", proxies={"a": Proxies(vectors=rows[:2, :3], labels=labels[:2])}
        )
    with pytest.raises(DataError, match="at least 4 examples"):
        embedding_maps({"a": rows[:3]}, labels[:3])
    with pytest.raises(DataError, match="`label_names` must name all 3 classes, got 2"):
        embedding_maps({"a": rows}, labels, method="pca", label_names=["x", "y"])
    with pytest.raises(DataError, match="must be one array, got 2 seeds"):
        embedding_maps({"a": {0: rows, 1: rows}}, labels)
