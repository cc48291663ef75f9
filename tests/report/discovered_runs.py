"""A small finished run of discovery, for the tests of its page."""

from lossmith.discovery.costs import Budget
from lossmith.discovery.engine import Engine
from lossmith.discovery.ladder import Ladder
from lossmith.discovery.rungs.tiny import TinyPreference
from lossmith.discovery.rungs.toy import ToyPreference
from lossmith.discovery.start import make_setup

PLANTED = """def f(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):
    z = 0.1 * ((chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps))
    return -torch.log(0.6 * torch.sigmoid(z) + 0.2)
"""
REFUSED = "def f(chosen_logps):\n    import os\n    return chosen_logps\n"


def small_run(folder, seed=6):
    """One round over two rungs in which the best loss of the toy world is among the candidates, and a refused one."""
    own = folder.parent / "own"
    own.mkdir()
    (own / "planted.py").write_text(PLANTED)
    (own / "refused.py").write_text(REFUSED)
    elsewhere = TinyPreference(name="tiny-unseen", task="order", pairs=64, test_pairs=64, steps=6)
    setup = make_setup(
        "preference",
        Ladder(
            rungs=(
                ToyPreference(pairs=96, batch=48, steps=12, test_prompts=64),
                TinyPreference(pairs=64, test_pairs=64, steps=6),
            ),
            unseen=(elsewhere,),
        ),
        seed=seed,
        budget=Budget.parse("90jobs"),
        proposers=("gp", str(own)),
        rounds=1,
        folder=folder,
    )
    with Engine(folder, setup) as engine:
        return engine.run()
