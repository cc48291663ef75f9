"""The decorator records, refuses what breaks the contract, and returns the same function."""

import pytest
from jaxtyping import Float
from torch import Tensor

from lossmith import ObjectiveInputError, list_losses, objective
from lossmith.objectives import _registry, get_record
from lossmith.objectives._registry import _REGISTRY, SAID_ELSEWHERE

SOURCE = "https://example.org/paper"


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_REGISTRY", dict(_registry._REGISTRY))


@pytest.mark.usefixtures("clean_registry")
def test_the_decorator_returns_the_same_function_and_reads_its_signature() -> None:
    def squared_loss(token_logps: Float[Tensor, " tokens"], entropy: Float[Tensor, " tokens"], *, power: float = 2.0):
        """Lower the square."""
        return token_logps**power + entropy

    assert objective(family="token", item="token", source=SOURCE, aliases=("sq",))(squared_loss) is squared_loss
    record = get_record("sq")
    assert record is get_record("squared")
    assert (record.name, record.reads, record.hyperparameters) == (
        "squared",
        ("token_logps", "entropy"),
        {"power": 2.0},
    )
    assert (record.source, record.summary, record.batch_coupled) == (SOURCE, "Lower the square.", False)
    assert [str(r) for r in list_losses("token")].count("squared") == 1


@pytest.mark.usefixtures("clean_registry")
def test_a_taken_name_is_refused() -> None:
    def focal_loss(token_logps):
        return token_logps

    focal_loss.__qualname__ = "focal_loss"  # as a function of another module has it
    with pytest.raises(
        ObjectiveInputError, match=r"'focal' is already recorded, in lossmith\.objectives\.token\.likelihood"
    ):
        objective(family="token", item="token", source=SOURCE)(focal_loss)


def _reads_unknown_loss(token_logp):
    return token_logp


def _no_default_loss(token_logps, *, gamma):
    return token_logps * gamma


def _loose_loss(token_logps, gamma=2.0):
    return token_logps * gamma


def _starred_loss(*token_logps):
    return token_logps


@pytest.mark.usefixtures("clean_registry")
@pytest.mark.parametrize(
    ("function", "place", "message"),
    [
        (
            _reads_unknown_loss,
            {},
            "reads `token_logp`, which family 'token' does not have. Did you mean 'token_logps'?",
        ),
        (_no_default_loss, {}, "Hyper-parameter `gamma` of _no_default_loss needs a default."),
        (
            _loose_loss,
            {},
            "`gamma` of _loose_loss must be a plain positional statistic or a hyper-parameter after `*`.",
        ),
        (_starred_loss, {}, "`token_logps` of _starred_loss must be a plain positional statistic"),
        (_loose_loss, {"family": "tokens"}, "`family` must be one of token, region, preference, unpaired, metric"),
        (_loose_loss, {"item": "pair"}, "`item` of family 'token' must be one of ('token',), got 'pair'."),
    ],
)
def test_a_signature_outside_the_contract_is_refused(function, place, message) -> None:
    with pytest.raises(ObjectiveInputError) as caught:
        objective(**{"family": "token", "item": "token", "source": SOURCE} | place)(function)
    assert message in str(caught.value)
    assert function.__name__.removesuffix("_loss") not in _registry._REGISTRY


def test_list_losses_by_family() -> None:
    assert {"cross_entropy", "focal"} <= {str(r) for r in list_losses("token")}
    assert all(r.family == "metric" for r in list_losses("metric"))
    assert len({r.name for r in list_losses()}) == len(list_losses())
    with pytest.raises(ObjectiveInputError, match=r"No family named 'tokens'. Did you mean 'token'\? Known: token, "):
        list_losses("tokens")
    with pytest.raises(
        ObjectiveInputError, match=r"^No family named 'discovered'\. The discovered losses are of family"
    ):
        list_losses("discovered")


def test_a_bare_decorator_says_what_it_needs() -> None:
    with pytest.raises(ObjectiveInputError, match=r"^`@objective` must be told what the function is, as in @objective"):
        objective(lambda token_logps: token_logps)
    with pytest.raises(ObjectiveInputError, match=r"^`@objective` must be told what the function is"):
        objective(family="token")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("focl", "focal"),
        ("DPO", "dpo"),
        ("kto-pair", "kto_pair"),
        ("sigmoid", "dpo"),
        ("CE", "cross_entropy"),
        ("InfoNCE", "nt_xent"),
        ("gce", "generalized_cross_entropy"),
    ],
)
def test_an_unknown_name_shows_what_is_meant(name: str, meant: str) -> None:
    with pytest.raises(ObjectiveInputError) as caught:
        get_record(name)
    assert str(caught.value) == (
        f"No objective named '{name}'. Did you mean '{meant}'? `lossmith.list_losses()` has all {len(list_losses())}."
    )


def test_names_said_elsewhere_are_none_of_ours() -> None:
    assert not set(SAID_ELSEWHERE) & set(_REGISTRY)
    assert set(SAID_ELSEWHERE.values()) <= set(_REGISTRY)


def test_a_name_like_no_other_shows_the_list() -> None:
    with pytest.raises(ObjectiveInputError, match=r"^No objective named 'qqqq'\. Known: aot, aot_unpaired, apo_down, "):
        get_record("qqqq")
    assert get_record("lovasz") is get_record("lovasz_softmax")
