"""`rampart bench`: performance, each figure beside its baseline in the same run."""

from __future__ import annotations

import typer

app = typer.Typer()

GPU_HZ = 10.0


@app.callback()
def _bench() -> None:
    """Performance, each figure beside its baseline in the same run."""


@app.command()
def devices(
    meters: int = typer.Option(100, min=1, max=1000, help="Meters, each on a connection of its own."),
    hz: float = typer.Option(10.0, min=0.1, max=1000.0, help="Reads per second of each."),
    seconds: float = typer.Option(10.0, min=1.0, max=600.0, help="Time measured for ours and for the bare library."),
    gpus: int = typer.Option(8, min=0, max=64, help="Simulated GPUs read at 10 Hz afterwards; 0: none."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Read many Modbus meters, then a node's GPUs, through our drivers and through the bare libraries, and compare.

    Example: rampart bench devices --meters 100 --hz 10
    """
    import json

    from controller.live_profiles import load_profile
    from hil import bench_gpus
    from hil.bench_devices import run

    result = run(load_profile("sunspec-meter"), meters=meters, hz=hz, seconds=seconds)
    cost = bench_gpus.run(gpus=gpus, hz=GPU_HZ, seconds=seconds) if gpus else None
    if as_json:
        typer.echo(json.dumps(result.as_dict() | (cost.as_dict() if cost else {})))
        return
    typer.echo(f"{meters} meters at {hz:g} Hz over loopback, {seconds:g} s each")
    for name, rate in (("rampart driver", result.ours), ("bare pymodbus", result.bare)):
        typer.echo(
            f"  {name:<15} p50 {rate.p50_ms:6.2f} ms   p99 {rate.p99_ms:6.2f} ms   max {rate.max_ms:6.2f} ms   "
            f"{100 * rate.cpu_frac:5.1f} % of a core   {rate.achieved_hz:.2f} Hz reached"
        )
    if cost is not None:
        typer.echo(f"{cost.gpus} GPUs at {cost.hz:g} Hz, {seconds:g} s each")
        for name, ms, share in (
            ("rampart driver", cost.read_ms, cost.cpu_frac),
            ("bare pynvml", cost.bare_read_ms, cost.bare_cpu_frac),
        ):
            typer.echo(f"  {name:<15} mean read {ms:6.2f} ms   {100 * share:5.2f} % of a core")


@app.command()
def audit(
    samples: int = typer.Option(4_000_000, min=100_000, max=90_000_000, help="Length of the record, at 1 kHz."),
    seed: int = typer.Option(1, help="Of the record's noise."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Judge a record at 1 kHz: two rows, every profile at once, and the plain way of writing the two rows.

    Example: rampart bench audit --samples 1000000
    """
    import json

    from hil.bench_audit import run

    result = run(samples=samples, seed=seed)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
        return
    typer.echo(f"{samples:,} samples at 1 kHz, millions judged per second (24 h in brackets)")
    for name, rate in (
        ("referee, ieso-ramp", result.samples_per_s),
        ("referee, every profile", result.all_profiles_samples_per_s),
        ("scipy, ieso-ramp", result.baseline_samples_per_s),
    ):
        typer.echo(f"  {name:<24} {rate / 1e6:7.2f}  ({86_400_000 / rate:.0f} s)")
    typer.echo(f"  worst figures differ by {100 * result.worst_differs_frac:.3f} %")
    typer.echo(f"  memory in the referee's run: {result.peak_memory_bytes / 2**20:.0f} MiB, the record included")


@app.command()
def planner(
    cycles: int = typer.Option(300, min=50, max=200_000, help="Decisions per fleet size."),
    gpus: list[int] = typer.Option([], help="Only fleets of this size; may be given again."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Time one decision, telemetry to clocks, beside the same model in CVXPY and the bare solver call.

    Example: rampart bench planner --cycles 300
    """
    import json
    from dataclasses import asdict

    from controller.errors import BadInput
    from hil.bench_planner import SIZES, run

    for size in gpus:
        if not 1 <= size <= 1_000_000:
            raise BadInput(f"--gpus: {size}: allowed: 1 to 1000000")
    rows = run(sizes=tuple(gpus) or SIZES, cycles=cycles)
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}))
        return
    typer.echo(f"{cycles} decisions per size, milliseconds; in brackets the process's own time")
    typer.echo(
        f"  {'GPUs':>8} {'p50':>16} {'p99':>16} {'max':>8} {'cvxpy p50':>16} {'solver p50':>16} "
        f"{'reports':>9} {'commands':>9} {'memory MB':>13}"
    )
    for row in rows:
        pairs = (
            (row.p50_ms, row.cpu_p50_ms),
            (row.p99_ms, row.cpu_p99_ms),
            (row.cvxpy_p50_ms, row.cpu_cvxpy_p50_ms),
            (row.solver_p50_ms, row.cpu_solver_p50_ms),
        )
        p50, p99, cvxpy, solver = (f"{wall:.2f} ({cpu:.2f})" for wall, cpu in pairs)
        typer.echo(
            f"  {row.gpus:>8,} {p50:>16} {p99:>16} {row.max_ms:>8.2f} {cvxpy:>16} {solver:>16} "
            f"{row.reports_p50_ms:>9.2f} {row.commands_p50_ms:>9.2f} {row.rss_first_mb:>6.0f} {row.rss_last_mb:>6.0f}"
        )
    typer.echo("reports and commands: of every node at once, process time; the daemon spreads both over its ticks.")
    typer.echo("memory: after a tenth of the decisions, and at their end.")


@app.command()
def regret(
    seeds: int = typer.Option(10, min=1, max=1000, help="Traces per case."),
    case: list[str] = typer.Option([], help="Only these cases; may be given again. Default: all six."),
    workers: int = typer.Option(0, min=0, max=64, help="Processes; 0: two, or as many as there are cores."),
    bounds: bool = typer.Option(False, "--bounds", help="Instead: regret that no controller avoids, per promise."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Compare every policy with perfect foresight at equal final energy; exit 1 if the comparison itself is broken.

    Example: rampart bench regret --seeds 3
    """
    from controller.cli.bench_regret import report, report_bounds

    if bounds:
        report_bounds(seeds=seeds, cases=tuple(case), workers=workers or 2, as_json=as_json)
        return
    report(seeds=seeds, cases=tuple(case), workers=workers or None, as_json=as_json)


@app.command()
def plant(
    traces: str = typer.Option(None, "--traces", metavar="DIR", help="Recorded power; ../shared/traces if not given."),
    quick: bool = typer.Option(False, "--quick", help="Five minutes of each run instead of the whole record."),
    seconds: float = typer.Option(4000.0, min=60.0, metavar="S", help="No run longer than this."),
    full: bool = typer.Option(False, "--full", help="Every run over its whole record, not the named figures alone."),
    jobs: int = typer.Option(2, min=1, max=64, help="Processes at once."),
    only: str = typer.Option(None, "--only", metavar="GROUP", help="figures, traces or field; all if not given."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of tables."),
    out: str = typer.Option(
        None,
        "--out",
        metavar="FILE.md",
        help="Write the tables between a page's markers; --only keeps the others there.",
    ),
) -> None:
    """Every recorded power trace on a 90 MW site: work lost and verdicts; exit 1 when a promise was not kept.

    Results are kept under out/benchmarks: an interrupted bench goes on where it stopped.

    Example: rampart bench plant --quick
    """
    from hil.plant_command import bench_plant

    seconds = min(seconds, 300.0) if quick else seconds
    raise typer.Exit(
        bench_plant(
            traces=traces,
            seconds_max=seconds,
            jobs=jobs,
            only=only,
            as_json=as_json,
            page=out,
            is_full=full,
        )
    )


@app.command()
def latency(
    trials: int = typer.Option(200, min=1, max=10_000, help="Of each way, after three to warm up."),
    loaded: bool = typer.Option(False, "--loaded", help="Keep every core busy meanwhile."),
    way: list[str] = typer.Option([], "--way", help="combined, caps or battery; all three when not given."),
    seed: int = typer.Option(1, help="Of the plant and of when in the loops' phases a trial begins."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Publish emergencies on real wires: time to clock lock, to set-point, and to power inside the target.

    Example: rampart bench latency --trials 20 --way combined
    """
    import json
    import logging

    import structlog

    from controller.errors import BadInput
    from hil.bench_latency import NotReady, run, table
    from hil.latency_site import Way
    from hil.wire_children import ChildDied

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    known = [w.value for w in Way]
    for name in way:
        if name not in known:
            raise BadInput(f"--way: {name!r}: allowed: {', '.join(known)}")

    def say(line: str) -> None:
        typer.echo(line, err=True)

    ways = [Way(name) for name in way] or list(Way)
    try:
        result = run(trials=trials, is_loaded=loaded, ways=ways, seed=seed, say=say)
    except (NotReady, ChildDied) as error:
        typer.echo(f"bench latency: {error}", err=True)
        raise typer.Exit(3) from None
    typer.echo(json.dumps(result.as_dict()) if as_json else table(result))
