"""The report in a real browser, from disk: nothing is requested, nothing complains, no foreign text runs."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from completion_studies import hostile_completions
from report_page import parse_page
from report_studies import DEMO_MEANS, fake_study, hostile_study

from lossmith.report.write import write_report

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--v=0", "--dump-dom",
]  # fmt: skip
CONTROL = """<!DOCTYPE html>
<meta http-equiv="Content-Security-Policy" content="script-src 'unsafe-inline'; style-src 'none'">
<img src="http://lossmith.invalid/x.png"><p style="color: red"></p><script>undefined_name()</script>"""

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")]


@dataclass(frozen=True)
class Visit:
    """What a browser saw."""

    dom: str
    console: list[str]
    requests: list[str]


def visit(page: Path, scratch: Path) -> Visit:
    """Open `page` from disk. Chromium also asks its maker for updates; only the page's own requests have an origin."""
    net_log = scratch / "net.json"
    flags = [*FLAGS, f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={net_log}"]
    command = [str(CHROMIUM), *flags, "--host-resolver-rules=MAP * ~NOTFOUND", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    log = json.loads(net_log.read_text())
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    started = [event.get("params", {}) for event in log["events"] if event["type"] == start]
    requests = [params["url"] for params in started if params.get("initiator", "not an origin") != "not an origin"]
    return Visit(
        dom=done.stdout, console=[line for line in done.stderr.splitlines() if "CONSOLE" in line], requests=requests
    )


def test_a_page_that_misbehaves_is_noticed(tmp_path):
    page = tmp_path / "control.html"
    page.write_text(CONTROL)
    seen = visit(page, tmp_path)
    assert seen.requests == ["http://lossmith.invalid/x.png"]
    assert any("undefined_name" in line for line in seen.console)
    assert any("Content Security Policy" in line for line in seen.console)


CLASSES = ["forest", "seeds", "learning_curves", "confusion"]
ANSWERS = ["forest", "seeds", "learning_curves", "outcomes"]


@pytest.mark.parametrize(
    ("make", "figures"),
    [
        (fake_study, CLASSES),
        (hostile_study, CLASSES),
        (lambda: fake_study(failed={(loss, seed) for loss in DEMO_MEANS for seed in range(5)}), CLASSES),
        (hostile_completions, ANSWERS),
    ],
    ids=["demo", "hostile", "all failed", "hostile completions"],
)
def test_the_report_opens_from_disk_in_silence(tmp_path, make, figures):
    study = make()
    seen = visit(write_report(tmp_path / "report", **vars(study)), tmp_path)
    assert seen.requests == []
    assert seen.console == []
    page = parse_page(seen.dom)
    assert [svg["aria-labelledby"].split("-")[0] for svg in page.all("svg")] == figures
    # The page's own script ran: headings became buttons and the save button is shown. No other script is there.
    assert len([b for b in page.all("button") if b.get("id") != "save-json"]) == 7
    assert "hidden" not in next(b for b in page.all("button") if b.get("id") == "save-json")
    assert [script.get("type") for script in page.all("script")] == ["application/json", None]
    assert not page.all("img")
