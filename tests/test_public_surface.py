"""What `import lossmith` promises: the names, and nothing heavier than torch."""

import subprocess
import sys
from importlib.resources import files

import lossmith

HEAVY = ["transformers", "accelerate", "scipy", "pandas", "sklearn", "matplotlib", "pydantic", "pyarrow", "datasets"]
HEAVY += ["rich", "typer", "beartype", "jinja2", "yaml", "plotext", "safetensors", "tokenizers"]


def test_importing_lossmith_loads_torch_and_nothing_heavier() -> None:
    # jaxtyping loads numpy where it is installed; what the two dependencies load by themselves does not count.
    code = (
        "import sys, torch, jaxtyping\n"
        "before = set(sys.modules)\n"
        "import lossmith\n"
        "print(','.join(sorted({name.split('.')[0] for name in set(sys.modules) - before})))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.strip().split(","))
    assert "lossmith" in loaded
    assert not loaded & {*HEAVY, "numpy"}


def test_public_names() -> None:
    assert set(lossmith.__all__) >= {"list_losses", "loss", "objective", "ObjectiveInputError", "LossmithError"}
    assert all(hasattr(lossmith, name) for name in lossmith.__all__)
    assert lossmith.__version__.count(".") == 2


def test_the_package_is_typed() -> None:
    assert (files("lossmith") / "py.typed").is_file()


def test_records_have_the_promised_attributes() -> None:
    records = {str(record): record for record in lossmith.list_losses()}
    assert "lovasz" not in records, "aliases are left out"
    focal = records["focal"]
    assert (focal.name, focal.family, focal.source) == ("focal", "token", "https://arxiv.org/abs/1708.02002")
    assert focal.reads == ("token_logps",)
    assert dict(focal.hyperparameters) == {"gamma": 2.0}
    assert focal.batch_coupled is False
    assert records["soft_triple"].hyperparameters == {
        "scale": 20.0,
        "gamma": 0.1,
        "margin": 0.01,
        "normalize": True,
        "centers_per_class": 10,
    }
    assert records["supcon"].hyperparameters["temperature"] == 0.1
    assert records["cross_entropy"].hyperparameters == {"label_smoothing": 0.0}
    assert {name for name, record in records.items() if record.batch_coupled} >= {"lovasz_softmax", "supcon"}
    assert [str(record) for record in lossmith.list_losses("token")] == sorted(
        str(record) for record in records.values() if record.family == "token"
    )
