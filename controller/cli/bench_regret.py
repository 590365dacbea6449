"""`rampart bench regret`: progress while it runs, then a table or JSON, then what was missed."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from controller.errors import BadInput

TABLE_COLUMNS = 170  # narrower, and figures would be cut


def report(*, seeds: int, cases: tuple[str, ...], workers: int | None, as_json: bool) -> None:
    """Run the energy bench and print it; exits 1 when a policy beat the oracle, which only a broken bench allows."""
    from rich.console import Console
    from rich.progress import Progress

    from hil.bench_regret import Result, run
    from hil.regret_cases import CASES

    _check(cases, [case.case_id for case in CASES])
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("traces", total=None)

        def tell(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)
            if not console.is_terminal:  # a bar cannot be seen in a file: a line each time instead
                typer.echo(f"{done} of {total} traces", err=True)

        result: Result = run(seeds=seeds, cases=cases, workers=workers, on_done=tell)
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
    else:
        _print_table(result)
    for why in result.failed:
        typer.echo(f"rampart: {why}", err=True)
    if result.failed:
        raise typer.Exit(1)


def report_bounds(*, seeds: int, cases: tuple[str, ...], workers: int, as_json: bool) -> None:
    """Print what each promise about unannounced events costs at least in a case without a reserve."""
    from hil.regret_bound import bounds
    from hil.regret_cases import CASES

    known = [case.case_id for case in CASES if not case.has_reserve]
    _check(cases, known)
    for name in cases or known:
        typer.echo(f"{name}: {seeds} seeds", err=True)
        found = bounds(name, seeds=seeds, workers=workers)
        if as_json:
            typer.echo(json.dumps({"case": name, "bounds": [asdict(bound) for bound in found]}))
            continue
        typer.echo(f"{name}: regret in pp that no controller avoids which keeps, at every moment and unannounced,")
        for bound in found:
            typer.echo(
                f"  {bound.promise:<12} mean {bound.mean_pp:6.3f}   least {bound.least_pp:6.3f}   "
                f"most {bound.most_pp:6.3f}   of {bound.seeds} seeds"
            )


def _check(cases: tuple[str, ...], known: list[str]) -> None:
    for name in cases:
        if name not in known:
            raise BadInput(f"--case: {name}: not a case here; known: {', '.join(known)}")


def _print_table(result: object) -> None:
    from rich.console import Console
    from rich.table import Table

    from hil.bench_regret import Result

    assert isinstance(result, Result)
    table = Table(title=f"lost work beside perfect foresight, {result.seeds} seeds", title_justify="left")
    for name in (
        *("case", "policy", "variant", "lost\n%", "oracle\n%", "regret\npp", "worst\npp", "episodes", "largest\nMW"),
        *("crash\nsafe %", "oracle(e0)\n%", "eT-e0\nMJ", "dual", "tier\nMJ", "fall\nbacks"),
    ):
        table.add_column(name, justify="left" if name in ("case", "policy", "variant") else "right", no_wrap=True)
    before = ""
    for line in result.lines:
        if before and line.case != before:
            table.add_section()
        table.add_row(
            "" if line.case == before else line.case,
            line.policy,
            line.variant,
            f"{100 * line.lost_frac:.3f}",
            f"{100 * line.oracle_lost_frac:.3f}",
            f"{line.regret_pp:.3f}",
            f"{line.regret_pp_worst:.3f}",
            f"{line.episodes} ({line.unforced_episodes})" if line.episodes else "0",
            f"{line.episode_w_max / 1e6:.2f}" if line.episodes else "",
            f"{100 * line.crash_safe_frac:.2f}",
            f"{100 * line.oracle_start_lost_frac:.3f}",
            f"{line.final_less_start_j / 1e6:.0f}",
            f"{line.dual:.2f}",
            f"{line.tier_excess_j / 1e6:.0f}" if line.tier_excess_j else "",
            str(line.fallbacks) if line.fallbacks else "",
        )
        before = line.case
    console = Console()
    Console(width=max(console.width, TABLE_COLUMNS)).print(table)
    typer.echo(
        "episodes: all seeds together, in brackets those away from the crash; crash safe: of steps, the worst seed."
    )
    typer.echo(
        "regret may be negative where limits or reserve were not kept: episodes, crash safe below 100. Every policy"
    )
    typer.echo(
        "but none was also held to an oracle that may break the same, and did not beat it." if not result.failed else ""
    )
    infeasible = [
        f"{line.case} {line.policy} {line.variant}: {line.infeasible}" for line in result.lines if line.infeasible
    ]
    if infeasible:
        typer.echo("seeds not scored, because no path keeps every limit: " + "; ".join(infeasible))
    typer.echo(
        f"goals missed ({result.wall_s:.0f} s):" if result.missed else f"every goal reached ({result.wall_s:.0f} s)"
    )
    for goal in result.missed:
        typer.echo(f"  {goal}")
