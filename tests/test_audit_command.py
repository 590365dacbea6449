"""`rampart audit`: exit status, JSON, table and report, as a person meets them; and the report on single events."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from controller.audit.referee import judge
from controller.audit.report import audit_report
from controller.config.contract import load_contract

KEYS = {
    "id", "kind", "limit", "unit", "mean_s", "worst", "worst_raw", "worst_t_s", "violation_s", "episodes", "verdict"
}  # fmt: skip


def record(folder: Path, *, drop_megawatt: float) -> Path:
    path = folder / "site.csv"
    t = np.arange(0.0, 120.0, 0.05)
    p = 80.0 - np.where(t < 60.0, 0.0, drop_megawatt)
    lines = [f"{a:.2f},{b:.3f}" for a, b in zip(t, p, strict=True)]
    path.write_text("t_s,pcc_megawatt\n" + "\n".join(lines) + "\n")
    return path


def rampart(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "controller.cli.main", *(str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_held_contract_exits_0_and_json_has_the_promised_keys(tmp_path: Path) -> None:
    done = rampart(
        "audit", record(tmp_path, drop_megawatt=4.9), "--contract", "ieso-ramp", "--contract", "caiso", "--json"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {"contract", "limits", "compliant", "not_assessed"} <= set(document)
    assert document["compliant"] is True and document["not_assessed"] == []
    assert all(set(row) >= KEYS for row in document["limits"])
    verdicts = {row["id"]: row["verdict"] for row in document["limits"]}
    assert verdicts == {
        "ieso-ramp.ramp-60s": "held",
        "ieso-ramp.swing-15s": "held",
        "caiso.ramp-600s": "not_binding",
    }


def test_a_broken_contract_exits_1_and_the_page_is_whole(tmp_path: Path) -> None:
    page = tmp_path / "out" / "report.html"
    done = rampart("audit", record(tmp_path, drop_megawatt=5.1), "--contract", "ieso", "--html", page)
    assert done.returncode == 1, done.stderr
    assert "broken" in done.stdout and "not compliant" in done.stdout
    assert "stands for it" in done.stdout  # the registered peak was assumed, and says so
    text = page.read_text()
    assert "src=" not in text.split("</script>")[-1] and "Plotly.newPlot" in text
    assert "http" not in text.split("<body>")[1].replace("http://www.w3.org", "").split("<footer>")[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--contract", "nowhere"), "known"),
        (("--contract", "ieso-ramp", "--column", "nothing"), "pcc_megawatt"),
        (("--contract", "ieso-ramp", "--unit", "GW"), "W, kW, MW"),
        (("--contract", "ieso", "--registered-peak-megawatt", "0"), "above zero"),
        (("--contract", "ieso-ramp", "--gap-s", "-1"), "--gap-s"),
        (("--contract", "ieso-ramp", "--scale", "0"), "--scale"),
    ],
)
def test_bad_input_exits_2_with_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = rampart("audit", record(tmp_path, drop_megawatt=1.0), *arguments)
    assert done.returncode == 2, done.stdout
    assert said.replace("known", "ieso-ramp") in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_the_page_escapes_what_a_file_is_called() -> None:
    t = np.arange(0.0, 60.0, 0.1)
    verdicts = judge(t, np.full(t.size, 5e6), load_contract(["lipa"], registered_peak_w=1e7), with_spectrum=True)
    page = audit_report(verdicts, subject="<script>alert(1)</script>", columns=("a</script>b",))
    body = page.split("<body>")[1]
    assert "<script>alert" not in body and "a</script>b" not in body


def test_the_limit_is_drawn_inside_the_frame() -> None:
    """A dashed line on the frame is none to see."""
    from controller.audit.figures import moment_figure

    t_s = np.arange(0.0, 60.0, 0.05)
    power_w = np.where(t_s < 30.0, 80e6, 77e6)
    for row in judge(t_s, power_w, load_contract(["ieso-ramp"], registered_peak_w=None)).limits:
        shown = moment_figure(row)
        assert shown is not None
        low, high = shown.figure.layout.yaxis.range
        levels = [shape.y0 for shape in shown.figure.layout.shapes if shape.type == "line"]
        assert len(levels) == 2 and low < min(levels) and max(levels) < high
