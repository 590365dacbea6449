"""Every command as a tired person calls it: wrong files, keys and values end in one line, status 2 and nothing lost.

All in one process: `main` maps errors to lines and exit codes, so it is what is called here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from controller.cli.main import app, main

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "configs" / "site.example.yaml"
NODE = ROOT / "configs" / "node.example.yaml"
NOBODY = "127.0.0.1:1"  # no broker and no device listens there


@dataclass(frozen=True, slots=True)
class Said:
    status: int
    out: str
    err: str


Rampart = Callable[..., Said]


@pytest.fixture
def rampart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Calls the command in this process, in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))

    def call(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["rampart", *map(str, words)])
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        told = capsys.readouterr()
        return Said(status, told.out, told.err)

    return call


def is_one_line(said: Said, *, holds: str = "") -> bool:
    """Refused with status 2, in one line that a person can act on."""
    lines = said.err.splitlines()
    return said.status == 2 and len(lines) == 1 and lines[0].startswith("rampart: ") and holds in lines[0]


def is_refused_by_the_parser(said: Said, option: str) -> bool:
    """The command line itself was wrong: the option is named, with what it takes."""
    return said.status == 2 and option in said.err and "Traceback" not in said.err


def no_files(folder: Path) -> None:
    """The files nobody meant to give, in `folder`, by what is wrong with them."""
    alias_tower = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join(['*' + chr(97 + k)] * 9)}]\n" for k in range(9)
    )
    files: dict[str, bytes] = {
        "empty": b"",
        "comment": b"\n# nothing but this\n",
        "binary": bytes(range(256)) * 4,
        "latin1": "name: gr\xfc\xdfe\n".encode("latin-1"),
        "nul": b"a: b\0c\n",
        "list": b"- 1\n- 2\n",
        "text": b"hello\n",
        "broken": b"a: [1, 2\nb: }\n",
        "tabs": b"a:\n\tb: 1\n",
        "tower": (alias_tower + "role: *j\nname: *j\nid: *j\nkind: header\n").encode(),
        "circle": b"&r {role: *r, name: *r}\n",
        "deep": b"[" * 3000,
        "tag": b'!!python/object/apply:os.system ["true"]\n',
        "twice": b"role: site\nrole: node\n",
        "two": b"a: 1\n---\nb: 2\n",
        "odd-keys": b"1: 2\n? [1, 2]\n: 3\n",
        "no-date": b"role: 2024-99-99\n",
        "digits": b"role: " + b"9" * 5000 + b"\n",
        "large": b"a: " + b"x" * (1 << 21),
        "two\nlines": b"a: 1\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()


NO_FILES = (
    *("absent", "empty", "comment", "binary", "latin1", "nul", "list", "text", "broken", "tabs", "tower", "circle"),
    *("deep", "tag", "twice", "two", "odd-keys", "no-date", "digits", "large", "two\nlines", "pipe", "folder"),
    *("/dev/zero", "/dev/null", "/proc/self/mem"),
)
TAKES_A_FILE: tuple[tuple[str, ...], ...] = (
    ("check", "-c", "FILE"),
    ("run", "-c", "FILE"),
    ("restore", "-c", "FILE"),
    ("node", "doctor", "-c", "FILE"),
    ("audit", "FILE", "--contract", "ieso-ramp"),
    ("audit", "good.csv", "--contract", "FILE"),
    ("replay", "FILE"),
    ("hil", "run", "FILE"),
    ("hil", "run", "campus-90mw", "--contract", "FILE"),
    ("hil", "run", "field", "--trace", "FILE"),
    ("device", "read", NOBODY, "--profile", "FILE"),
    ("device", "probe", NOBODY, "--profile", "FILE"),
    ("device", "probe", NOBODY, "--against", NOBODY, "--against-profile", "FILE"),
    ("grid", "send", "--load-megawatt", "3", "--issuer", "a", "--key", "FILE", "--broker", NOBODY),
    ("grid", "send", "--limits", "FILE", "--issuer", "a", "--key", "FILE", "--broker", NOBODY),
    ("grid", "watch", "--agent", "a", "--agent-key", "FILE", "--broker", NOBODY),
    ("conformance", "--role", "isv", "--key", "FILE", "--broker", NOBODY),
    ("conformance", "--role", "agent", "--key", "FILE", "--agent-key", "FILE", "--broker", NOBODY),
)


def good_record(folder: Path) -> Path:
    path = folder / "good.csv"
    path.write_text("t_s,pcc_w\n" + "".join(f"{0.1 * k:.1f},{1e6 + k}\n" for k in range(300)))
    return path


@pytest.mark.parametrize("command", TAKES_A_FILE, ids=" ".join)
def test_no_file_is_too_wrong_for_one_line(rampart: Rampart, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Absent, empty, binary, another kind, a pipe, a device, aliases without end: one line that names the file."""
    no_files(tmp_path)
    good_record(tmp_path)
    before = {p.name: p.stat().st_size for p in tmp_path.iterdir()}
    for name in NO_FILES:
        said = rampart(*(name if word == "FILE" else word for word in command))
        if name == "two\nlines":
            assert said.status == 2 and len(said.err.splitlines()) == 1 and "two\\nlines" in said.err
        elif command[:2] == ("grid", "send") and "--limits" in command and name in ("list", "odd-keys"):
            assert is_one_line(said), (name, said)  # YAML it is: the row is what is wrong
        else:
            assert is_one_line(said, holds=name.removeprefix("/proc/self")), (name, said)
    assert {p.name: p.stat().st_size for p in tmp_path.iterdir() if p.name in before} == before


def test_aliases_without_end_are_refused(rampart: Rampart, tmp_path: Path) -> None:
    """Ten lines of aliases that are 400 million words written out, and one that holds itself: nobody waits for them."""
    no_files(tmp_path)
    for name in ("tower", "circle"):
        assert is_one_line(rampart("check", "-c", name), holds="values"), name


def test_a_key_given_twice_is_refused(rampart: Rampart, tmp_path: Path) -> None:
    """The last of two `battery:` blocks would silently win over the first."""
    site = tmp_path / "site.yaml"
    site.write_text(SITE.read_text() + "\nbattery:\n  profile: sunspec-battery\n")
    assert is_one_line(rampart("check", "-c", site), holds="key 'battery' is given twice")


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        (("registered_peak_megawatt",), float("nan"), "registered_peak_megawatt"),
        (("registered_peak_megawatt",), 1e308, "registered_peak_megawatt"),
        (("registered_peak_megawatt",), -90, "registered_peak_megawatt"),
        (("registered_peak_megawatt",), "ninety", "registered_peak_megawatt"),
        (("registered_peak_megawatt",), True, "registered_peak_megawatt"),
        (("battery", "deadband_megawatt"), False, "battery.deadband_megawatt"),
        (("tracker_hz",), 0, "tracker_hz"),
        (("contract",), ["ieso-rmap"], "ieso-rmap"),
        (("fallback_contract",), ["nope"], "fallback_contract"),
        (("contract",), [], "contract"),
        (("pcc_meter", "profile"), "sunspec-metre", "pcc_meter.profile"),
        (("pcc_meter", "port"), 99_999, "pcc_meter.port"),
        (("pcc_meter", "host"), "http://192.0.2.10", "pcc_meter.host"),
        (("battery", "host"), "192.0.2.11:502", "battery.host"),
        (("ups", 0, "host"), "192.0.2.12 ", "ups.0.host"),
        (("name",), "", "name: '': text that is not empty is allowed"),
        (("pcc_meter", "delay_s"), float("inf"), "pcc_meter.delay_s"),
        (("battery", "profile"), "../../etc/passwd", "battery.profile"),
        (("battery", "charge_megawatt"), 1e300, "battery.charge_megawatt"),
        (("battery", "soc_min"), 1.5, "battery.soc_min"),
        (("battery", "ramp_megawatt_per_s"), 0, "battery.ramp_megawatt_per_s"),
        (("load", "gpu_peak_megawatt"), 1e308, "load.gpu_peak_megawatt"),
        (("contingencies", 0, "slew_per_s"), 1e-300, "contingencies.0.slew_per_s"),
        (("classes", 0, "tolerated_loss"), 7, "classes.0.tolerated_loss"),
        (("mqtt", "keepalive_s"), -1, "mqtt.keepalive_s"),
        (("nmae",), "x", "nmae: unknown key"),
    ],
)
def test_a_wrong_value_names_its_key(
    rampart: Rampart, tmp_path: Path, path: tuple[str | int, ...], value: object, key: str
) -> None:
    """The example site with one value wrong: file and key are in the line, and the file stays as it was."""
    document = yaml.safe_load(SITE.read_text())
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    site = tmp_path / "site.yaml"
    site.write_text(text := yaml.safe_dump(document))
    said = rampart("check", "-c", site)
    assert is_one_line(said, holds=str(site)) and key in said.err, said
    assert site.read_text() == text


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e999", "abc", ""])
def test_numbers_that_are_none(rampart: Rampart, tmp_path: Path, value: str) -> None:
    """Options that take a number: refused by the parser or by us, never a traceback, never an endless run."""
    record = good_record(tmp_path)
    assert rampart("grid", "keygen", "keys").status == 0
    send = ("--issuer", "a", "--key", "keys/issuer.jwk", "--broker", NOBODY, "--wait-s", "0.1")
    audit = ("audit", record, "--contract", "ieso-ramp")
    for option, command in (
        ("--scale", audit),
        ("--registered-peak-megawatt", audit),
        ("--scale", ("hil", "run", "field")),
        ("--duration", ("hil", "run", "campus-90mw")),
        ("--seed", ("hil", "run", "campus-90mw")),
        ("--ramp", ("check", "-c", SITE)),
        ("--load-megawatt", ("grid", "send", *send)),
        ("--for-s", ("grid", "send", "--load-megawatt", "3", *send)),
        ("--start-in-s", ("grid", "send", "--load-megawatt", "3", *send)),
        ("--ramp-megawatt", ("grid", "send", *send)),
        ("--window-s", ("grid", "send", "--ramp-megawatt", "3", *send)),
        ("--ceiling-megawatt", ("grid", "send", *send)),
        ("--unit", ("device", "probe", NOBODY)),
        ("--timeout", ("device", "probe", NOBODY)),
        ("--meters", ("bench", "devices")),
        ("--hz", ("bench", "devices")),
        ("--samples", ("bench", "audit")),
        ("--cycles", ("bench", "planner")),
        ("--seeds", ("bench", "regret")),
        ("--trials", ("bench", "latency")),
    ):
        said = rampart(*command, f"{option}={value}")
        assert is_one_line(said) or is_refused_by_the_parser(said, option), (option, value, said)


def test_a_record_scaled_beyond_numbers(rampart: Rampart, tmp_path: Path) -> None:
    """A scale that makes watts infinite is the person's mistake, not ours."""
    said = rampart("audit", good_record(tmp_path), "--contract", "ieso-ramp", "--scale", "1e308")
    assert is_one_line(said, holds="--scale")


def test_a_record_of_one_sample_is_none(rampart: Rampart, tmp_path: Path) -> None:
    """Nothing can be judged on it, so nothing may be called compliant."""
    (tmp_path / "one.csv").write_text("t_s,pcc_w\n0,1\n")
    said = rampart("audit", tmp_path / "one.csv", "--contract", "ieso-ramp")
    assert is_one_line(said, holds="one sample below the header; at least two are needed"), said


def test_rows_are_told_apart_on_a_narrow_terminal(
    rampart: Rampart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    said = rampart("audit", good_record(tmp_path), "--contract", "ieso-ramp")
    told = "".join(line.split()[0] for line in said.out.splitlines() if line.startswith("  ") and line.split())
    assert "ieso-ramp.ramp-60s" in told and "ieso-ramp.swing-15s" in told, said.out


def test_a_report_overwrites_reports_only(rampart: Rampart, tmp_path: Path) -> None:
    """`--html meter.csv` once ate the record it had just judged."""
    record = good_record(tmp_path)
    before = record.read_bytes()
    assert is_one_line(rampart("audit", record, "--contract", "ieso-ramp", "--html", record), holds="--html")
    assert record.read_bytes() == before
    assert is_one_line(rampart("audit", record, "--contract", "ieso-ramp", "--html", record / "x.html"))
    assert is_one_line(rampart("audit", record, "--contract", "ieso-ramp", "--html", "/proc/nope/x.html"))


def test_keys_are_never_overwritten_and_named_plainly(rampart: Rampart, tmp_path: Path) -> None:
    """A private key is made once; names that would leave the folder or are no names are refused."""
    assert rampart("grid", "keygen", "keys", "--name", "acme").status == 0
    before = (tmp_path / "keys" / "acme.jwk").read_bytes()
    assert is_one_line(rampart("grid", "keygen", "keys", "--name", "acme"), holds="never overwritten")
    assert (tmp_path / "keys" / "acme.jwk").read_bytes() == before
    for name in ("", ".", "..", "../up", "a/b", "a\0b", "x" * 400, "\udcff", "two\nlines"):
        assert is_one_line(rampart("grid", "keygen", "keys", "--name", name), holds="allowed"), name
    assert is_one_line(rampart("grid", "keygen", "keys", "--name", "b", "--alg", "HS256"), holds="ES256")
    assert is_one_line(rampart("grid", "keygen", "keys/acme.jwk"))
    assert sorted(p.name for p in (tmp_path / "keys").iterdir()) == ["acme.jwk", "acme.pub.jwk"]


@pytest.mark.parametrize(
    "broker",
    ["http://x", "mqtt://", "mqtt://u:p@h", "mqtts://h", "mqtt://h/path", "::", "mqtt://[::1", "mqtt://h:70000"],
)
def test_brokers_that_are_none(rampart: Rampart, broker: str) -> None:
    """What is no broker address is said before anything is connected to."""
    assert is_one_line(
        rampart("grid", "watch", "--agent", "a", "--broker", broker, "--seconds", "0.1"), holds="--broker"
    )


@pytest.mark.wire
@pytest.mark.parametrize("host", ["a b", "x" * 300, NOBODY])
def test_a_broker_that_does_not_answer_is_said(rampart: Rampart, host: str) -> None:
    """Watching a broker that never answered ends with its reason and status 1, not in silence."""
    said = rampart("grid", "watch", "--agent", "a", "--broker", host, "--seconds", "0.2")
    assert said.status == 1 and "no broker session" in said.err and "Traceback" not in said.err


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "x" * 65, "a\0", "é"])
def test_names_that_would_be_other_topics(rampart: Rampart, name: str) -> None:
    """A slash or a wildcard in a name would publish to, or listen on, somebody else's topic."""
    assert rampart("grid", "keygen", "keys").status == 0
    send = ("grid", "send", "--load-megawatt", "1", "--key", "keys/issuer.jwk", "--broker", NOBODY)
    assert is_one_line(rampart(*send, "--issuer", name), holds="--issuer")
    assert is_one_line(rampart(*send, "--issuer", "a", "--agent", name), holds="--agent")
    assert is_one_line(rampart("grid", "watch", "--agent", name, "--broker", NOBODY), holds="--agent")


def test_orders_that_contradict_themselves(rampart: Rampart, tmp_path: Path) -> None:
    """Both or neither of a value and its opposite; a direction, role, feed, case or way that does not exist."""
    assert rampart("grid", "keygen", "keys").status == 0
    send = ("--issuer", "a", "--key", "keys/issuer.jwk", "--broker", NOBODY)
    for words, holds in (
        (("grid", "send", *send), "--load-megawatt"),
        (("grid", "send", "--load-megawatt", "1", "--withdraw", "load", *send), "--withdraw"),
        (("grid", "send", "--load-megawatt", "1", "--feed", "", *send), "feed_tags"),
        (("grid", "send", "--ramp-megawatt", "1", *send), "--window-s"),
        (
            ("grid", "send", "--ramp-megawatt", "1", "--window-s", "9", "--direction", "sideways", *send),
            "direction",
        ),
        (("conformance", "--role", "judge", "--key", "keys/issuer.jwk", "--broker", NOBODY), "agent or isv"),
        (("conformance", "--role", "agent", "--key", "keys/issuer.jwk", "--broker", NOBODY), "--agent-key"),
        (("bench", "regret", "--case", "no"), "--case"),
        (("bench", "latency", "--way", "no"), "--way"),
        (("bench", "plant", "--only", "no"), "--only"),
        (("audit", good_record(tmp_path), "--contract", "ieso-ramp", "--column", "no"), "pcc_w"),
        (("audit", good_record(tmp_path), "--contract", "ieso-ramp", "--unit", "GW"), "--unit"),
        (("device", "probe", "127.0.0.1:0"), "65535"),
        (("device", "probe", "http://x"), "http"),
        (("hil", "run", ""), "campus-90mw"),
        (("hil", "run", "campus-90mw", "--duration", "-3"), "--duration -3: above 0"),
        (("hil", "run", "field", "--scale", "0"), "--scale 0: above 0"),
        (("hil", "run", "field", "--seed", "-1"), "--seed -1: 0 to 4294967295"),
        (("device", "probe", ""), "host: ''"),
        (("hil", "run", "demo", "--trace", "x.csv"), "--trace"),
    ):
        assert is_one_line(rampart(*words), holds=holds), (words, rampart(*words))


def test_secrets_that_cannot_be_read(rampart: Rampart, tmp_path: Path) -> None:
    """Password and TLS files that are absent, a folder, a pipe or endless: the file is named, nothing waits."""
    no_files(tmp_path)
    assert rampart("grid", "keygen", "keys").status == 0
    send = ("grid", "send", "--load-megawatt", "1", "--issuer", "a", "--key", "keys/issuer.jwk")
    for name in ("absent", "folder", "pipe", "/dev/zero"):
        for option, broker in (("--password-file", NOBODY), ("--ca-file", f"mqtts://{NOBODY}")):
            said = rampart(*send, "--broker", broker, option, name, "--wait-s", "0.3")
            assert is_one_line(said, holds=name), (option, name, said)


def test_places_that_cannot_be_written(rampart: Rampart, tmp_path: Path) -> None:
    """Output and state folders that are files, or that nobody may write."""
    record = good_record(tmp_path)
    before = record.read_bytes()
    for words in (
        ("restore", "--state-dir", record),
        ("systemd", "install", "--root", record),
        ("systemd", "install", "--dry-run", "--root", record),
        ("systemd", "install", "--root", "/proc/nope"),
        ("hil", "run", "campus-90mw", "--duration", "1", "--out", record),
        ("hil", "run", "campus-90mw", "--duration", "1", "--out", "/proc/nope"),
        ("hil", "run", "campus-90mw", "--duration", "1", "--out", "/proc"),  # there, and takes no file
        ("grid", "keygen", record),
        ("grid", "keygen", "/proc/nope"),
        ("bench", "plant", "--traces", record),
        ("bench", "plant", "--traces", "/nope"),
    ):
        assert is_one_line(rampart(*words)), (words, rampart(*words))
    assert record.read_bytes() == before


def test_a_status_socket_that_is_none(rampart: Rampart, tmp_path: Path) -> None:
    """No controller answers on a file, a folder or a pipe: said in one line, with status 1."""
    no_files(tmp_path)
    for name in ("absent", "text", "folder", "pipe", "two\nlines"):
        said = rampart("status", "--socket", name)
        assert said.status == 1 and len(said.err.splitlines()) == 1 and "no controller answers" in said.err


def test_output_that_a_full_disk_takes_is_said() -> None:
    """`rampart check > file` on a full disk: one line, no traceback, and not a status that means something else."""
    command = [sys.executable, "-m", "controller.cli.main", "check", "-c", str(SITE)]
    with os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb", buffering=0) as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (3, "rampart: output: No space left on device\n")


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def walk(command: Any, path: tuple[str, ...]) -> None:
        inner = getattr(command, "commands", None)
        if inner is None:
            found.append(path)
        for name, child in (inner or {}).items():
            walk(child, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_shows_an_example(rampart: Rampart, path: tuple[str, ...]) -> None:
    """Help that ends in a line one can copy, for this very command, with options that exist."""
    said = rampart(*path, "--help")
    assert said.status == 0
    examples = [line for line in said.out.splitlines() if "Example" in line]
    assert examples and f"rampart {' '.join(path)}" in " ".join(said.out.split()), said.out
