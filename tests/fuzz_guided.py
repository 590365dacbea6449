"""Feeds every parser of the outside by coverage: `python -m tests.fuzz_guided --seconds 20 [--only NAME]`.

Needs the optional extra `fuzz` (atheris). Each target runs in a process of its own, from its good examples; what it
learned is kept under out/fuzz/NAME, so that the next run goes on from there. A crash, a hang of 10 s or 2 GiB of memory
ends with the input's file and the line that runs it again; that input then belongs into a test.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

OUT = Path("out/fuzz")
HANG_S, MEMORY_MB, LENGTH_MAX = 10, 2048, 8192


def one(name: str, seconds: float, inputs: list[str]) -> None:
    """Fuzz one target until the time is over, or run `inputs` through it once; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["controller", "drivers", "hil"]):
        from tests.fuzz_targets import targets
    target = next(t for t in targets() if t.name == name)
    corpus = OUT / name
    corpus.mkdir(parents=True, exist_ok=True)
    for k, good in enumerate(target.good):
        (corpus / f"good-{k}").write_bytes(good)
    limits = [f"-timeout={HANG_S}", f"-rss_limit_mb={MEMORY_MB}", f"-max_len={LENGTH_MAX}"]
    how = inputs or [str(corpus), f"-max_total_time={seconds:.0f}", f"-artifact_prefix={OUT}/{name}-"]
    atheris.Setup([sys.argv[0], *limits, *how], target)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz by coverage.")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each target")
    parser.add_argument("--only", help="this target alone")
    parser.add_argument("--run", nargs="*", default=[], metavar="FILE", help="run these inputs once; needs --only")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside or given.run:
        one(given.only, given.seconds, given.run)
        return 0
    from tests.fuzz_targets import targets

    failed = []
    for target in targets():
        if given.only in (None, target.name):
            words = ["--only", target.name, "--seconds", str(given.seconds), "--inside"]
            done = subprocess.run(
                [sys.executable, "-m", "tests.fuzz_guided", *words], capture_output=True, text=True, check=False
            )
            runs = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
            print(f"{target.name}: {runs[-1] if runs else f'FAILED (status {done.returncode})'}", flush=True)
            if done.returncode:
                failed.append(target.name)
                print("\n".join(done.stderr.splitlines()[-25:]))
                print(f"again: python -m tests.fuzz_guided --only {target.name} --run {OUT}/{target.name}-*")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
