"""The built wheel, away from the source tree, finds its data and runs the main job."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tiny

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = built.glob("*.whl")
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(site: Path, cwd: Path, *words: str) -> str:
    # Ahead of the editable install, so that nothing comes from the source tree.
    done = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": str(site)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_runs_compare_on_shipped_data(site, tmp_path):
    assert str(site) in run(site, tmp_path, "-c", "import lossmith; print(lossmith.__file__)")
    model = tiny.write_model(tmp_path / "tiny")
    shown = run(
        site, tmp_path, "-m", "lossmith", "compare", "cr", "epochs=1", "--model", str(model), "--losses", "focal",
        "--seeds", "2", "--shots", "4", "--device", "cpu", "--out", "out",
    )  # fmt: skip
    assert "cross_entropy: the baseline" in shown
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "CC BY 4.0" in page


def test_the_wheel_holds_types_data_attribution_and_templates(site):
    package = site / "lossmith"
    assert (package / "py.typed").is_file()
    assert (package / "tasks" / "data" / "mr" / "README.md").is_file()
    assert (package / "report" / "templates" / "report.html.j2").is_file()
    assert list(site.glob("lossmith-*.dist-info/licenses/LICENSE"))
    assert not list(site.glob("**/tests"))
