"""Search spaces: every shipped range can be built, and what a user writes is taken or refused in one sentence."""

import pytest

import lossmith
from lossmith.errors import ConfigurationError
from lossmith.nn import parse_composition
from lossmith.studies import StudyConfig, compare_command
from lossmith.studies.tuning_config import apply_tuning_overrides, make_tuning_config, tune_command
from lossmith.studies.tuning_ranges import RANGES
from lossmith.studies.tuning_space import search_space, tuned

JOINT = "0.4*cross_entropy + 0.6*soft_triple"


def composition(record):
    return f"0.4*cross_entropy + 0.6*{record.name}" if record.family == "metric" else record.name


OBJECTIVES = [record for record in lossmith.list_losses() if record.family in ("token", "region", "metric")]


@pytest.mark.parametrize("record", OBJECTIVES, ids=str)
def test_both_ends_of_every_shipped_range_are_a_loss(record):
    config, loss = StudyConfig(), composition(record)
    space = {part.name: part for part in search_space(config, loss, {})}
    for name, bounds in RANGES.get(record.name, {}).items():
        part = space[f"{record.name}.{name}"]
        assert (part.low, part.high) == (min(bounds[0], part.untuned), max(bounds[1], part.untuned))
        assert part.untuned == record.hyperparameters[name]
        for end in part.ends:
            text = tuned(config, loss, {part.name: end})[1]
            assert parse_composition(text).terms[-1].hyperparameters.get(name, part.untuned) == end
    assert [name for name in space if "." not in name][:2] == ["learning_rate", "epochs"]


def test_every_range_is_of_a_numeric_hyperparameter_of_a_known_loss():
    records = {record.name: record for record in OBJECTIVES}
    for loss, ranges in RANGES.items():
        for name, (low, high, *log) in ranges.items():
            default = records[loss].hyperparameters[name]
            assert type(default) in (int, float), (loss, name)
            assert low < high
            assert low > 0 or not log


def test_the_untuned_values_leave_the_study_letter_for_letter():
    config = StudyConfig(learning_rate=0.000123456789, epochs=7)
    for loss in (JOINT, "0.123456789*cross_entropy + 0.7*focal_tversky", "cross_entropy -> focal @ 0.25"):
        loss = str(parse_composition(loss))
        values = {part.name: part.untuned for part in search_space(config, loss, {})}
        assert tuned(config, loss, values) == (config, loss)


def test_b_is_the_share_of_cross_entropy_wherever_it_stands_and_keeps_the_sum_of_weights():
    config = StudyConfig()
    assert tuned(config, JOINT, {"b": 0.75})[1] == "0.75*cross_entropy + 0.25*soft_triple"
    assert tuned(config, "3*supcon + cross_entropy", {"b": 0.75})[1] == "supcon + 3*cross_entropy"
    assert tuned(config, "0.4*focal + 0.6*supcon", {"b": 0.1})[1] == "0.1*focal + 0.9*supcon"


@pytest.mark.parametrize(
    "loss", ["cross_entropy", "cross_entropy -> focal @ 0.3", "cross_entropy - 0.1*focal", "focal + dft + poly1"]
)
def test_there_is_no_b_without_a_sum_of_two(loss):
    assert "b" not in [part.name for part in search_space(StudyConfig(), str(parse_composition(loss)), {})]


def test_proxies_learn_at_a_tuned_rate_only_where_there_are_proxies():
    names = [part.name for part in search_space(StudyConfig(), JOINT, {})]
    assert names[:5] == ["learning_rate", "epochs", "proxy_lr_multiplier", "b", "cross_entropy.label_smoothing"]
    assert "proxy_lr_multiplier" not in [part.name for part in search_space(StudyConfig(), "focal", {})]


def test_a_range_is_widened_to_hold_what_the_user_wrote():
    space = {part.name: part for part in search_space(StudyConfig(), "cross_entropy + focal(gamma=8)", {})}
    assert (space["focal.gamma"].low, space["focal.gamma"].high, space["focal.gamma"].untuned) == (0, 8, 8)
    low = search_space(StudyConfig(), "cross_entropy + supcon(temperature=0.01) + dice(smooth=0)", {})
    low = {part.name: part for part in low}
    assert (low["supcon.temperature"].low, low["supcon.temperature"].high) == (0.01, 1)
    # No logarithm reaches a 0.
    assert (low["dice.smooth"].low, low["dice.smooth"].log, low["supcon.temperature"].log) == (0, False, True)
    wide = search_space(StudyConfig(learning_rate=1e-5), "focal", {})[0]
    assert (wide.low, wide.high, wide.log) == (1e-6, 1e-4, True)


def test_terms_of_one_loss_are_tuned_together_unless_they_differ():
    same = "cross_entropy -> 0.5*cross_entropy + 0.5*focal @ 0.3"
    assert tuned(StudyConfig(), same, {"cross_entropy.label_smoothing": 0.1})[1] == (
        "cross_entropy(label_smoothing=0.1) -> 0.5*cross_entropy(label_smoothing=0.1) + 0.5*focal @ 0.3"
    )
    differing = "focal(gamma=1.0) -> focal @ 0.3"
    assert "focal.gamma" not in [part.name for part in search_space(StudyConfig(), differing, {})]


def test_what_the_user_writes_replaces_what_is_shipped():
    config = make_tuning_config(
        {
            "losses": [JOINT],
            "space": {
                "learning_rate": {"low": "1e-5", "high": 1e-3},
                "soft_triple.margin": [0.1, "7e-1"],
                "pooling": ["cls"],
                "epochs": None,
                "soft_triple.scale": {"high": 30},
                "weight_decay": {"low": 0, "high": 0.1, "log": False},
            },
        }
    )
    space = {part.name: part for part in config.spaces[JOINT]}
    assert (space["learning_rate"].low, space["learning_rate"].high, space["learning_rate"].log) == (1e-5, 1e-3, True)
    assert space["soft_triple.margin"].choices == (0.01, 0.1, 0.7)
    assert space["pooling"].choices == ("mean", "cls")
    assert (space["soft_triple.scale"].low, space["soft_triple.scale"].high) == (2, 30)
    assert space["weight_decay"].high == 0.1
    assert "epochs" not in space
    assert "soft_triple.margin" not in [part.name for part in config.spaces["cross_entropy"]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trials": 0}, "`trials`: input should be greater than or equal to 1, got 0"),
        ({"trials": True}, "`trials` must not be True"),
        ({"inner_folds": 1}, "`inner_folds`: input should be greater than or equal to 2, got 1"),
        ({"inner_metric": "acuracy"}, "`inner_metric` must be a metric of the test, got 'acuracy'. Did you mean"),
        ({"spce": {}}, "there is no setting `spce`. Did you mean 'space'"),
        ({"space": {"soft_triple.margn": [1]}}, "has `soft_triple.margn` to tune. Did you mean 'soft_triple.margin'"),
        ({"losses": ["focal"], "space": {"proxy_lr_multiplier": [1]}}, "no loss of this study has `proxy_lr_"),
        ({"space": {"learning_rate": {"low": 1, "high": 0.1}}}, "must have `low` < `high`, got low 1 and high 0.1"),
        ({"space": {"learning_rate": {"low": 1, "high": 1}}}, "must have `low` < `high`"),
        ({"space": {"learning_rate": {"low": 1e-3, "high": 1}}}, "leaves out the untuned value 0.0001"),
        ({"space": {"learning_rate": 5}}, "`space.learning_rate` must be a range such as {low: 0.1"),
        ({"space": {"learning_rate": {"lo": 5}}}, "`space.learning_rate` must be a range such as {low: 0.1"),
        ({"space": {"learning_rate": []}}, "`space.learning_rate` must be a range such as {low: 0.1"),
        ({"space": {"weight_decay": {"low": 0}}}, "`space.weight_decay` needs `low` and `high`"),
        ({"space": {"epochs": {"low": 1.5, "high": 20}}}, "`space.epochs` must hold a whole number, got 1.5"),
        ({"space": {"epochs": {"low": 0, "high": 20, "log": False}}}, "`space.epochs` cannot be 0"),
        ({"space": {"b": {"low": 0.1, "high": 1}}}, "`space.b` must lie between 0 and 1"),
        ({"space": {"soft_triple.margin": {"low": 0, "high": 1, "log": True}}}, "so `low` must be > 0, got 0"),
        ({"space": {"soft_triple.scale": [-1]}}, "`space.soft_triple.scale` cannot be -1.0: `scale` must be > 0"),
        ({"space": {"pooling": ["max"]}}, "`space.pooling` cannot be 'max'"),
        ({"space": {"pooling": {"low": 0, "high": 1}}}, "has no range: list the values to try"),
        ({"losses": ["dft"], "baseline": "dft", "space": {"epochs": None, "learning_rate": None}}, "nothing to tune"),
        ({"task": "gsm8k"}, "`lossmith tune` is for classification, and 'gsm8k' has written answers"),
        (
            {"task": "polite_pairs"},
            "'polite_pairs' is trained on preferences: use `lossmith compare` with the settings",
        ),
        ({"task": "sentiment", "losses": ["ipo"]}, "'sentiment' is trained on preferences"),
    ],
)
def test_a_wrong_setting_is_one_sentence(values, message):
    with pytest.raises(ConfigurationError) as caught:
        make_tuning_config({"losses": [JOINT]} | values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_space_may_be_written_on_the_command_line(tmp_path):
    words = ["space.soft_triple.margin=[0.1, 0.7]", "space.poly1.epsilon=null", "epochs=5"]
    given = apply_tuning_overrides({"space": {"epochs": None, "poly1.epsilon": [1]}}, words)
    assert given == {"epochs": 5, "space": {"epochs": None, "poly1.epsilon": None, "soft_triple.margin": [0.1, 0.7]}}


def test_the_command_makes_the_same_settings_again(tmp_path):
    import shlex

    config = make_tuning_config({"losses": [JOINT], "trials": 7, "space": {"soft_triple.margin": [0.1, 0.7]}})
    words = shlex.split(tune_command(config, tmp_path))
    assert words[:2] == ["lossmith", "tune"]
    assert words[2:] == [*shlex.split(compare_command(config.study, tmp_path))[2:], *words[-2:]]
    assert make_tuning_config({"losses": [JOINT]} | apply_tuning_overrides({}, words[-2:])) == config
