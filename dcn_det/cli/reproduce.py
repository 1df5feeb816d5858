"""``dcn-det reproduce``: plans, runs and fills a table of the paper."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from dcn_det import cli
from dcn_det.cli.arguments import Parser, positive, seconds
from dcn_det.config import load_any
from dcn_det.errors import UserError
from dcn_det.progress import say_on_stderr
from dcn_det.reproduce.outcome import read_outcomes
from dcn_det.reproduce.plan import measure_step, plan
from dcn_det.reproduce.record import read_record
from dcn_det.reproduce.state import State
from dcn_det.reproduce.status import status
from dcn_det.reproduce.steps import Graph, Options, Step, build_graph, configs_folder, trainings
from dcn_det.reproduce.tables import FOD, TABLES, Row
from dcn_det.reproduce.write import markdown, write_table

Dispatch = Callable[[list[str]], int]


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det reproduce",
        description="Reproduce a table of the paper, or 'fod', a table like them on public photographs: plan it (the "
        "default: nothing is run or written), run what is not done yet, or show its state. A training that several "
        "rows need is done once.",
        notes="exit codes: 0 done, or submitted; 1 some steps failed or could not run; 2 invalid arguments; 130, 143, "
        "138 stopped by SIGINT, SIGTERM or SIGUSR1 (the same command continues)",
        examples=[
            "dcn-det reproduce table5 --rows 'rfcn_air*' --step-seconds 0.3",
            "dcn-det reproduce table5 --smoke",
        ],
    )
    result.add_argument("table", choices=TABLES, help="the table")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override every config")
    result.add_argument(
        "--rows",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,...",
        help="configs of the rows, such as rfcn_r101,rfcn_air* (default: all)",
    )
    result.add_argument(
        "--schedule",
        choices=("released", "paper"),
        default="released",
        help="schedule of the authors' released code, or of the paper (default: %(default)s)",
    )
    result.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set, instead of the configs'")
    result.add_argument(
        "--weights",
        choices=("train", "authors"),
        default="train",
        help="train, or convert and test the weights that the authors released (default: %(default)s)",
    )
    result.add_argument(
        "--seeds", type=positive, metavar="N", help="trainings of each row, with N seeds (default: 1; 3 for fod)"
    )
    result.add_argument("--fraction", type=float, metavar="F", help="fraction of the images to use (data.fraction)")
    result.add_argument("--output", type=Path, metavar="DIR", help="folder of all files (default: runs/reproduce/KIND)")
    where = result.add_mutually_exclusive_group()
    where.add_argument(
        "--launch", default="", metavar="COMMAND", help='run on several GPUs, such as "torchrun --nproc_per_node 8"'
    )
    where.add_argument(
        "--slurm",
        action="store_true",
        help="submit the steps with sbatch, one job each; it reads SBATCH_PARTITION, SBATCH_TIMELIMIT and others",
    )
    what = result.add_mutually_exclusive_group()
    what.add_argument("--run", action="store_true", help="run what is not done yet, and write the table")
    what.add_argument("--status", action="store_true", help="print the state of all steps and the table so far")
    what.add_argument("--show", type=Path, metavar="FILE", help="print the table of a file of results, TABLE.json")
    result.add_argument(
        "--smoke", action="store_true", help="run every row with a small network and few images, to try everything"
    )
    time = result.add_mutually_exclusive_group()
    time.add_argument("--step-seconds", type=seconds, metavar="S", help="seconds of a training step on one GPU")
    time.add_argument("--measure", action="store_true", help="measure the training steps on this machine")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    table = TABLES[args.table]
    if args.show:
        print(markdown(table, read_record(args.show, table), facts=False), end="")
        return 0
    kind = "smoke" if args.smoke else "authors" if args.weights == "authors" else args.schedule
    if args.smoke and args.weights == "authors":
        raise UserError("--smoke trains small networks, --weights authors tests released ones; give one of them")
    if table is FOD and (args.schedule == "paper" or args.weights == "authors"):
        raise UserError("fod is no table of the paper: it has one schedule, and no released weights")
    seeds = args.seeds or (1 if args.smoke else table.seeds)
    if seeds > 1 and (table.timed or args.weights == "authors"):
        raise UserError(f"--seeds {seeds}: nothing is trained, so seeds make no difference; leave it out")
    overrides = [*args.overrides, *([] if args.fraction is None else [f"data.fraction={args.fraction:g}"])]
    rows = table.select(args.rows)
    if args.data is not None:
        require_one_data_set(rows)
    options = Options(
        table=table,
        output=args.output or Path("runs") / "reproduce" / kind,
        schedule=args.schedule,
        weights=args.weights,
        data=args.data,
        smoke=args.smoke,
        seeds=seeds,
        overrides=tuple(overrides),
        rows=rows if args.rows else (),
    )
    graph = build_graph(options)
    if args.weights == "authors":
        rows = tuple(each.row for each in graph.rows if each.steps and each.row in rows)
        if not rows:
            raise UserError(
                f"--weights authors: released for none of these rows of {args.table}; table5 has four, table3 four of "
                "DeepLab"
            )
    if args.status:
        print(status(options, graph, rows))
        return 0
    if args.run or args.smoke:
        return run(options, graph, rows, args.launch, args.slurm)
    steps = graph.select(rows)
    times = {}
    if args.step_seconds is not None:
        times = {step.name: args.step_seconds for step in trainings(steps)}
    elif args.measure:
        times = {step.name: measure_step(step, say_on_stderr) for step in trainings(steps)}
    print(plan(options, graph, rows, times))
    return 0


def require_one_data_set(rows: Sequence[Row]) -> None:
    """Raises a UserError if rows read several data sets, which cannot be in one folder."""
    roots = {getattr(load_any(configs_folder() / f"{row.config}.yaml").data, "root", "") for row in rows if row.config}
    if len(roots) > 1:
        raise UserError(f"--data: these rows read {', '.join(sorted(roots))}; select rows of one of them with --rows")


def run(options: Options, graph: Graph, rows: tuple[Row, ...], launch: str, slurm: bool) -> int:
    """Runs the steps of rows that are not done, and writes the table; returns the exit code."""
    from dcn_det.distributed import Processes
    from dcn_det.engine.lock import exclusive
    from dcn_det.reproduce.run import Runner
    from dcn_det.reproduce.slurm import submit

    state, steps = State(options.output), graph.select(rows)
    with exclusive(options.output, Processes()):
        if options.smoke and options.data is None:
            from dcn_det.reproduce.smoke import write_data

            write_data(options.output / "data")

        def write() -> None:
            write_table(options, read_outcomes(graph, state))

        if slurm:
            complete = submit(state, graph.steps, steps, say_on_stderr)
            signum = None
        else:
            runner = Runner(state, graph.steps, launch, _dispatch(steps), say_on_stderr)
            complete = runner.run(steps, write)
            signum = runner.signum
        write()
    print(status(options, graph, rows))
    if signum is not None:
        return 128 + signum
    return 0 if complete else 1


def _dispatch(steps: Sequence[Step]) -> Dispatch:
    """Returns the function that runs a command, with the modules of the steps' commands imported."""
    for name in {step.command[0] for step in steps}:
        importlib.import_module(cli.COMMANDS[name][0])
    return cli.dispatch
