import numpy as np
import pytest
import torch
from text_models import LinearBag, tiny_classifier, tiny_folder

import tiny
from lossmith.errors import DataError, ModelError, ObjectiveInputError
from lossmith.explain import attribute_tokens, tokenize_texts

TEXTS = [row["text"] for row in tiny.sentences(5, 1)] + ["bad", "a warm unheardof scene"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory)


@pytest.fixture(scope="module")
def bert(folder):
    return tiny_classifier(folder)


@pytest.fixture(scope="module")
def linear(bert):
    return LinearBag(len(bert[1])), bert[1]


def log_probability(model, ids, target):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits
    return float(logits[0].log_softmax(-1)[target])


def test_tokens_are_the_text_without_special_ones(bert):
    text = "good  film,xyzzy \tplot"
    (found,) = tokenize_texts(bert[1], [text])
    assert "".join(found.pieces) == text
    assert [found.fields["input_ids"][place] for place in (0, -1)] == bert[1].convert_tokens_to_ids(["[CLS]", "[SEP]"])
    # An unknown word is part of the text.
    assert len(found.content) == len(found) - 2
    assert bert[1].unk_token_id in [found.fields["input_ids"][place] for place in found.content]


def test_the_second_text_of_a_pair_is_told_apart_and_cutting_shortens(bert):
    found, cut = (
        tokenize_texts(bert[1], ["good film"], pairs=["dull plot cast"], max_length=length)[0] for length in (32, 7)
    )
    assert found.segments == (0, 0, 1, 1, 1)
    assert found.pieces == ("good", " film", "dull", " plot", " cast")
    assert len(cut) == 7
    with pytest.raises(DataError, match="`pairs` must have one text per text, 1, got 2"):
        tokenize_texts(bert[1], ["a"], pairs=["b", "c"])
    with pytest.raises(DataError, match="at least one text"):
        tokenize_texts(bert[1], [])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("baseline", ["mask", "pad", "zero"])
def test_on_a_linear_model_every_method_is_known_exactly(linear, side, baseline):
    model, tokenizer = linear
    tokenizer.padding_side = side
    try:
        targets = [place % 3 for place in range(len(TEXTS))]
        found = attribute_tokens(model, tokenizer, TEXTS, targets=targets, score="logit", baseline=baseline, steps=4)
    finally:
        tokenizer.padding_side = "right"
    table, head = model.embedding.weight.detach().numpy(), model.head.weight.detach().numpy()
    empty = np.zeros(5) if baseline == "zero" else table[tokenizer.convert_tokens_to_ids(f"[{baseline.upper()}]")]
    for one, target, text in zip(found.texts, targets, TEXTS, strict=True):
        ids = tokenizer(text)["input_ids"][1:-1]
        assert one.target == target
        for place, token in enumerate(ids):
            moved = float((table[token] - empty) @ head[target])
            assert one.weights["integrated_gradients"][place] == pytest.approx(moved, abs=1e-5)
            assert one.weights["occlusion"][place] == pytest.approx(moved, abs=1e-5)
            assert one.weights["gradient_x_input"][place] == pytest.approx(float(table[token] @ head[target]), abs=1e-5)
        assert one.completeness_error() < 1e-4


def test_occlusion_is_the_fall_when_a_token_is_masked(bert):
    model, tokenizer = bert
    found = attribute_tokens(model, tokenizer, TEXTS, methods=("occlusion",))
    for one, text in zip(found.texts, TEXTS, strict=True):
        ids = tokenizer(text)["input_ids"]
        whole = log_probability(model, ids, one.target)
        assert one.value == pytest.approx(whole, abs=1e-5)
        for place in range(1, len(ids) - 1):
            masked = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
            fall = whole - log_probability(model, masked, one.target)
            assert one.weights["occlusion"][place - 1] == pytest.approx(fall, abs=2e-5)
        empty = [ids[0], *[tokenizer.mask_token_id] * (len(ids) - 2), ids[-1]]
        assert one.empty_value == pytest.approx(log_probability(model, empty, one.target), abs=1e-5)


def test_integrated_gradients_add_up_better_with_more_steps(bert):
    errors = [
        max(one.completeness_error() for one in attribute_tokens(*bert, TEXTS, steps=steps).texts) for steps in (2, 48)
    ]
    sizes = [abs(one.value - one.empty_value) for one in attribute_tokens(*bert, TEXTS, steps=2).texts]
    assert errors[1] < 0.02 * max(sizes)
    assert errors[1] < errors[0]


def test_gradient_times_input_is_a_finite_difference(bert):
    model, tokenizer = bert
    (one,) = attribute_tokens(model, tokenizer, TEXTS[:1], methods=("gradient_x_input",), score="logit").texts
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    table = model.get_input_embeddings()(ids).detach().double()
    double = model.double()
    try:
        for place in range(len(one.text.content)):
            values = []
            for scale in (1.001, 0.999):
                moved = table.clone()
                moved[0, place + 1] *= scale
                with torch.no_grad():
                    values.append(
                        float(double(inputs_embeds=moved, attention_mask=torch.ones_like(ids)).logits[0, one.target])
                    )
            assert one.weights["gradient_x_input"][place] == pytest.approx(
                (values[0] - values[1]) / 0.002, rel=1e-3, abs=1e-4
            )
    finally:
        model.float()


def test_a_batch_says_what_each_text_alone_says(bert):
    together = attribute_tokens(*bert, TEXTS)
    for place, text in enumerate(TEXTS):
        (alone,) = attribute_tokens(*bert, [text]).texts
        for method in together.methods:
            np.testing.assert_allclose(together.texts[place].weights[method], alone.weights[method], atol=2e-5)


def test_predicted_classes_are_explained_and_the_model_is_left_as_it_was(bert):
    model, tokenizer = bert
    model.train()
    next(model.parameters()).requires_grad_(False)
    seen = []
    try:
        found = attribute_tokens(model, tokenizer, TEXTS, on_text=seen.append)
        assert model.training
        assert not next(model.parameters()).requires_grad
        assert all(parameter.requires_grad for parameter in list(model.parameters())[1:])
        assert all(parameter.grad is None for parameter in model.parameters())
    finally:
        next(model.parameters()).requires_grad_(True)
        model.eval()
    assert not model.get_input_embeddings()._forward_hooks
    assert sum(seen) == len(TEXTS)
    for one, text in zip(found.texts, TEXTS, strict=True):
        with torch.no_grad():
            assert one.target == int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())


def test_frame_highlights_and_plot_hold_the_weights(bert):
    found = attribute_tokens(*bert, TEXTS)
    frame = found.frame()
    assert len(frame) == sum(len(one.text.content) for one in found.texts)
    own = frame[frame["text"] == 2]
    np.testing.assert_allclose(own["occlusion"], found.texts[2].weights["occlusion"])
    pieces = found.texts[2].highlights("occlusion")
    assert "".join(piece for piece, _ in pieces) == TEXTS[2]
    assert max(abs(weight) for _, weight in pieces) == pytest.approx(1)
    assert len(found.plot(2).axes) == 3
    with pytest.raises(DataError, match=r"`text` must be in \[0, 7\), got 7"):
        found.plot(7)


def test_mistakes_are_named(bert, linear):
    with pytest.raises(ObjectiveInputError, match="`methods` must be one of"):
        attribute_tokens(*bert, TEXTS, methods=("lime",))
    with pytest.raises(ObjectiveInputError, match="`score` must be one of"):
        attribute_tokens(*bert, TEXTS, score="probability")
    with pytest.raises(DataError, match="`targets` must name one class per text, 7, got 1"):
        attribute_tokens(*bert, TEXTS, targets=[0])
    with pytest.raises(DataError, match="`targets` must be class ids below 2, got 2"):
        attribute_tokens(*bert, TEXTS, targets=[2] * 7)
    with pytest.raises(DataError, match="`steps` must be an int >= 2, got 1"):
        attribute_tokens(*bert, TEXTS, steps=1)
    with pytest.raises(ModelError, match="Linear does not say its token embeddings"):
        attribute_tokens(torch.nn.Linear(2, 2), bert[1], TEXTS)
