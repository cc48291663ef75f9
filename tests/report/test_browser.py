"""The report in a real browser, from disk: nothing is requested, nothing complains, no foreign text runs."""

import json
import re
import shutil
import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from completion_studies import hostile_completions
from report_page import parse_page
from report_studies import DEMO_MEANS, fake_study, hostile_study

from lossmith.report.discovery import write_discovery
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


PROBE = """<script>addEventListener("load", () => {
const width = document.documentElement.clientWidth
const wide = [...document.querySelectorAll("body *")].filter(each => each.getBoundingClientRect().right > width + 1)
document.body.dataset.wide = wide.filter(each => !each.closest(".scroll")).map(each => each.tagName).join(" ")
document.body.dataset.overflow = document.documentElement.scrollWidth - width
})</script>"""


def overflow(page: Path, scratch: Path, width: int) -> tuple[int, str]:
    """Pixels that `page` is wider than a window, and what sticks out; measured on a copy that allows our script."""
    text = re.sub("script-src '[^']*'", "script-src 'unsafe-inline'", page.read_text(), count=1)
    copy = scratch / f"wide-{width}.html"
    copy.write_text(text.replace("</body>", f"{PROBE}</body>"))
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={scratch / 'profile'}", f"--window-size={width},2000"]
    done = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    (body,) = parse_page(done.stdout).all("body")
    return int(body["data-overflow"]), body["data-wide"]


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


def test_a_page_that_sticks_out_is_noticed(tmp_path):
    page = tmp_path / "control.html"
    page.write_text("<!DOCTYPE html><body><table style='width: 700px'><tr><td>x</td></tr></table></body>")
    pixels, what = overflow(page, tmp_path, 600)
    assert pixels > 90
    assert what.split()[0] == "TABLE"


NAME, REASON = "<img src=http://lossmith.invalid/x.png onerror=alert(1)>", "<script>undefined_name()</script>"


@pytest.mark.parametrize("hostile", [False, True], ids=["small run", "hostile names"])
def test_the_page_of_a_discovery_opens_in_silence_and_fits(tmp_path, discovered, hostile):
    folder = tmp_path / "run"
    shutil.copytree(discovered, folder)
    if hostile:
        with sqlite3.connect(folder / "discovery.sqlite") as connection:
            connection.execute("UPDATE program SET name = ? WHERE role = 'candidate'", (NAME * 3,))
            connection.execute("UPDATE proposal SET reason = ? WHERE kind = 'rejected'", (REASON,))
        connection.close()
    page = write_discovery(folder)
    seen = visit(page, tmp_path)
    assert seen.requests == []
    assert seen.console == []
    parsed = parse_page(seen.dom)
    figures = [svg["aria-labelledby"].split("-title")[0] for svg in parsed.all("svg")]
    assert figures[0] == "evidence"
    assert figures[-2:] == ["lineage", "proposers"]
    assert len(figures) > 3
    assert all(figure.startswith("program-") for figure in figures[1:-2])
    # The page's own script ran, and no other is there.
    assert "hidden" not in next(b for b in parsed.all("button") if b.get("id") == "save-json")
    assert [script.get("type") for script in parsed.all("script")] == ["application/json", None]
    assert not parsed.all("img")
    if hostile:
        assert REASON in parsed.text("td")
    for width in (500, 1280):
        assert overflow(page, tmp_path, width) == (0, "")
