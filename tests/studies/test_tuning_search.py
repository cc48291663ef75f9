"""A search: its budget is exact whatever stops it, the untuned trial is the first, and losers stop early."""

import math
import random
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the tune extra is not installed")

from lossmith.errors import EvidenceError, TrainingDivergedError
from lossmith.studies.tuning_search import STARTUP, Trial, best_of, search
from lossmith.studies.tuning_space import Parameter

SPACE = (
    Parameter(name="rate", untuned=1e-4, low=1e-5, high=1e-3, log=True),
    Parameter(name="centres", untuned=10, low=1, high=25),
    Parameter(name="pooling", untuned="mean", choices=("mean", "cls")),
)


def scores(values, folds=3):
    draw = random.Random(str(sorted(values.items())))
    for _ in range(folds):
        yield -abs(math.log10(values["rate"]) + 3.5) - abs(values["centres"] - 5) / 20 + draw.gauss(0, 0.05)


def run(file: Path, objective=scores, **changes):
    settings = {"trials": 9, "folds": 3, "key": (0, "focal"), "higher_is_better": True} | changes
    return search(file, changes.pop("space", SPACE), objective, **{k: v for k, v in settings.items() if k != "space"})


def plain(trials):
    return [(trial.values, trial.state, trial.folds) for trial in trials]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    return run(tmp_path_factory.mktemp("calm") / "trials.log")


def test_the_first_trial_is_the_untuned_one_and_later_ones_lie_in_the_space(calm):
    assert len(calm) == 9
    assert calm[0].values == {"rate": 1e-4, "centres": 10, "pooling": "mean"}
    assert calm[0].folds == list(scores(calm[0].values))
    assert len({str(trial.values) for trial in calm}) == 9
    for trial in calm:
        assert 1e-5 <= trial.values["rate"] <= 1e-3
        assert 1 <= trial.values["centres"] <= 25
        assert isinstance(trial.values["centres"], int)


def test_a_killed_search_goes_on_to_the_same_trials(calm, tmp_path):
    stops = 0
    while True:
        asked = 0

        def objective(values):
            nonlocal asked
            for score in scores(values):
                asked += 1
                if asked > 5:
                    raise KeyboardInterrupt
                yield score

        try:
            trials = run(tmp_path / "trials.log", objective)
        except KeyboardInterrupt:
            stops += 1
            continue
        break
    assert stops >= 3
    assert plain(trials) == plain(calm)


def test_half_a_line_and_a_lock_that_a_kill_left_are_dropped(calm, tmp_path):
    file = tmp_path / "trials.log"
    run(file, trials=4)
    (tmp_path / "trials.log.lock").touch()
    file.write_bytes(file.read_bytes()[:-9])
    assert plain(run(file)) == plain(calm)
    assert plain(run(file)) == plain(calm)


def test_a_finished_search_asks_for_nothing_and_a_longer_one_only_for_the_rest(calm, tmp_path):
    run(tmp_path / "trials.log", trials=3)
    told = []
    run(tmp_path / "trials.log", trials=3, on_trial=lambda *what: told.append(what))
    assert told == []
    run(tmp_path / "trials.log", trials=4, on_trial=lambda number, trial: told.append((number, trial is None)))
    assert told == [(3, True), (3, False)]


def test_the_block_seeds_the_proposals(calm, tmp_path):
    other = run(tmp_path / "other.log", trials=2, key=(1, "focal"))
    assert other[0].values == calm[0].values
    assert all(other[1].values[name] != calm[1].values[name] for name in ("rate", "centres"))


@pytest.mark.parametrize("trials", [6, 15])
def test_losses_share_the_startup_values_of_what_they_share(tmp_path, trials):
    share = Parameter(name="b", untuned=0.4, low=0.1, high=0.9)
    own = [Parameter(name=name, untuned=1.0, low=0, high=5) for name in ("focal.gamma", "dft.scale")]
    wide = Parameter(name="centres", untuned=10, low=1, high=90)
    one = run(tmp_path / "one.log", space=(own[0], *SPACE, share), trials=trials)
    # Others in front, fewer of them, and the results tell otherwise.
    key, opposite = (0, "dft"), lambda values: (-score for score in scores(values))
    other = run(tmp_path / "other.log", opposite, space=(share, wide, own[1], *SPACE[::2]), trials=trials, key=key)
    startup = max(STARTUP, trials // 3)
    for name in ("rate", "pooling", "b"):
        pairs = [(first.values[name], second.values[name]) for first, second in zip(one, other, strict=True)]
        assert [first for first, _ in pairs[:startup]] == [second for _, second in pairs[:startup]]
    rates = [trial.values["rate"] for trial in one]
    assert len(set(rates)) == trials
    assert rates[startup:] != [trial.values["rate"] for trial in other[startup:]]
    # Parameters of one range are drawn apart, and later places from other numbers.
    shares = [(math.log10(trial.values["rate"]) + 5) / 2 - (trial.values["b"] - 0.1) / 0.8 for trial in one[1:startup]]
    assert min(map(abs, shares)) > 1e-6


def test_losers_stop_early_and_count_and_the_best_is_never_one_of_them(tmp_path):
    levels = [
        *([level] * 3 for level in (0.5, 0.6, 0.7, 0.8, 0.66)),
        [0.1, 1.0, 1.0],  # far behind after one fold
        [0.9, 0.0, 1.0],  # behind most after two
        [0.58, 1.0, 0.9],  # behind most after one fold, which is no reason to stop
        [0.9, 0.9, 0.0],  # behind after all folds, when there is nothing to save
    ]
    asked = []

    def objective(values):
        place = len(asked)
        asked.append(0)
        for level in levels[place]:
            asked[-1] += 1
            yield level

    trials = run(tmp_path / "trials.log", objective, trials=9)
    assert [trial.state for trial in trials] == ["finished"] * 5 + ["pruned"] * 2 + ["finished"] * 2
    assert asked == [3, 3, 3, 3, 3, 1, 2, 3, 3]
    assert trials[6].folds == [0.9, 0.0]
    assert trials[6].score is None
    assert best_of(trials, higher_is_better=True) == 7


def test_few_trials_stop_nobody(tmp_path):
    places = iter(range(STARTUP))
    trials = run(tmp_path / "trials.log", lambda values: iter([1.0 - next(places)] * 3), trials=STARTUP)
    assert [trial.state for trial in trials] == ["finished"] * STARTUP


def test_where_less_is_better_large_values_are_the_losers(tmp_path):
    levels = iter([0.5, 0.6, 0.7, 0.8, 0.62, 2.0, 0.1])

    def objective(values):
        yield from [next(levels)] * 3

    trials = run(tmp_path / "trials.log", objective, trials=7, higher_is_better=False)
    assert [trial.state for trial in trials] == ["finished"] * 5 + ["pruned", "finished"]
    assert best_of(trials, higher_is_better=False) == 6


def test_a_training_that_is_not_finite_is_a_trial_of_the_budget(tmp_path):
    calls = []

    def objective(values):
        calls.append(values)
        yield 0.5
        if len(calls) == 2:
            raise TrainingDivergedError(3, [1.0])
        yield math.nan if len(calls) == 3 else 0.6

    trials = run(tmp_path / "trials.log", objective, trials=4, folds=2)
    assert [trial.state for trial in trials] == ["finished", "failed", "failed", "finished"]
    assert len(calls) == 4
    assert trials[1].folds == []
    assert best_of(trials[1:3], higher_is_better=True) is None


def test_what_breaks_a_training_otherwise_is_not_hidden(tmp_path):
    def objective(values):
        raise OSError("the model has gone")
        yield

    with pytest.raises(OSError, match="the model has gone"):
        run(tmp_path / "trials.log", objective)


def test_ties_go_to_the_earlier_trial():
    trials = [Trial(values={}, state="finished", folds=folds) for folds in ([0.5, 0.5], [0.4, 0.6], [0.3, 0.6])]
    assert best_of(trials, higher_is_better=True) == 0


def test_nothing_to_tune_is_one_trial(tmp_path):
    trials = run(tmp_path / "trials.log", lambda values: iter([0.5] * 3), space=())
    assert plain(trials) == [({}, "finished", [0.5] * 3)]


@pytest.mark.parametrize("text", ["no journal at all\nnot here either\n", '{"op": 3}\n{"op_code": 77}\n', "[]\n"])
def test_a_file_that_holds_no_trials_is_one_sentence(tmp_path, text):
    (tmp_path / "trials.log").write_text(text, encoding="utf-8")
    with pytest.raises(EvidenceError, match=r"trials\.log` cannot be read: remove the file to begin again"):
        run(tmp_path / "trials.log")


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "seed-0").write_text("x", encoding="utf-8")
    with pytest.raises(EvidenceError, match="a file stands where the folder should be"):
        run(tmp_path / "seed-0" / "trials.log")
