"""The built wheel, installed in an empty environment, finds its data and runs the main job."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import tiny

ROOT = Path(__file__).resolve().parents[1]


def run(*words: object, cwd: Path) -> str:
    # Nothing of this environment or of the source tree may help.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(word) for word in words], env=clean, cwd=cwd, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def binaries(tmp_path_factory) -> Path:
    built = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", built, ROOT, cwd=built)
    (wheel,) = built.glob("*.whl")
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "-c", ROOT / "constraints.txt", f"{wheel}[train]", cwd=built)
    return folder / "bin"


def test_the_installed_wheel_runs_compare_on_shipped_data(binaries, tmp_path):
    where = run(binaries / "python", "-c", "import lossmith; print(lossmith.__file__)", cwd=tmp_path)
    assert str(binaries.parent) in where
    model = tiny.write_model(tmp_path / "tiny")
    shown = run(
        binaries / "lossmith", "compare", "cr", "epochs=1", "--model", model, "--losses", "focal",
        "--seeds", "2", "--shots", "4", "--device", "cpu", "--out", "out", cwd=tmp_path,
    )  # fmt: skip
    assert "cross_entropy: the baseline" in shown
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "CC BY 4.0" in page
    assert "8 training texts per seed" in page


def test_the_installed_wheel_holds_types_data_attribution_and_templates(binaries):
    (package,) = binaries.parent.glob("lib/python*/site-packages/lossmith")
    assert (package / "py.typed").is_file()
    assert (package / "tasks" / "data" / "mr" / "README.md").is_file()
    assert (package / "report" / "templates" / "report.html.j2").is_file()
    assert list(package.parent.glob("lossmith-*.dist-info/licenses/LICENSE"))
