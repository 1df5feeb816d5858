"""``tools/train.py``: trains what a config describes."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch

from dcn_det import distributed
from dcn_det.config import Config, load_config, print_config, to_plain
from dcn_det.distributed import Processes
from dcn_det.engine.guards import data_changes
from dcn_det.engine.logging import Log, RunLog
from dcn_det.engine.session import Session
from dcn_det.engine.signals import Interrupted
from dcn_det.engine.store import CheckpointStore
from dcn_det.engine.surroundings import save_surroundings
from dcn_det.errors import UserError
from dcn_det.inference.predictor import resolve_device
from dcn_det.weights import checkpoint


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="train",
        description="Trains the detector that a config describes; with torchrun, on several GPUs or machines.",
        epilog="exit codes: 0 done; 2 a mistake, or training that diverged; 130, 143, 138 stopped by SIGINT, SIGTERM "
        "or SIGUSR1 after saving, to be continued with --resume",
    )
    result.add_argument("config", type=Path, help="YAML file")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the config")
    result.add_argument("--output", type=Path, help="folder of the run (default runs/<config name>)")
    resuming = result.add_mutually_exclusive_group()
    resuming.add_argument("--resume", action="store_true", help="continue the run in the folder")
    resuming.add_argument(
        "--auto-resume", action="store_true", help="continue the run in the folder if there is one, otherwise start it"
    )
    result.add_argument(
        "--stop-at",
        type=int,
        metavar="N",
        help="save and stop after iteration N of the run; --resume goes on",
    )
    result.add_argument("--print-config", action="store_true", help="print every value and its origin, and stop")
    result.add_argument("--dry-run", action="store_true", help="build everything, print sizes and rates, and stop")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    config = load_config(args.config, *args.overrides)
    if args.print_config:
        print(print_config(config), end="")
        return 0
    processes, device = distributed.start(resolve_device(config.device), config.device)
    if not processes.main:
        warnings.simplefilter("ignore")  # the main process gives the same ones
    code = _run(args, config, print_config(config), processes, device)
    distributed.stop()
    return code


def _run(args: argparse.Namespace, config: Config, printed: str, processes: Processes, device: torch.device) -> int:
    output: Path = args.output or Path("runs") / config.name
    store = CheckpointStore(output, config.train.keep_checkpoints)
    resumed = None
    if args.resume or args.auto_resume or processes.restarts:
        resumed = _latest(store, processes)
        if resumed is None and args.resume:
            raise UserError(f"'{output}' holds no readable checkpoint to resume from")
    elif not args.dry_run and processes.share(bool(store.saved())):
        raise UserError(f"'{output}' already holds a run; continue it with --resume or give another --output")

    session = Session(config, processes, device, resumed[1]["images_per_step"] if resumed else None)
    if args.dry_run:
        if processes.main:
            print(session.summary())
        return 0
    log = Log()
    if processes.main:
        output.mkdir(parents=True, exist_ok=True)
        store.tidy()
        (output / "config.yaml").write_text(printed)
        iteration = resumed[1]["iteration"] if resumed else 0
        log = RunLog(output, iteration=iteration, wandb=config.train.wandb, config=to_plain(config))
        save_surroundings(output)
    try:
        log.say(session.summary())
        trainer = session.trainer(store, log, args.stop_at)
        if resumed is not None:
            path, state = resumed
            _say_differences(to_plain(config), state["config"])
            changed = data_changes(state, trainer.metadata["categories"], trainer.metadata["data_fingerprint"])
            if changed:
                log.say(f"warning: {changed}")
            trainer.load_state(state, path)
            log.say(f"resumed from '{path}' at iteration {trainer.iteration}")
        try:
            trainer.run()
        except Interrupted as stop:
            log.say(str(stop))
            return 128 + stop.signum
        if trainer.iteration < session.length:
            log.say(f"stopped at iteration {trainer.iteration} as asked; continue with --resume")
        elif processes.main:
            checkpoint.save(output / "last.pth", trainer.exported())
            log.say(f"done: '{output / 'last.pth'}'")
        processes.wait()
    finally:
        log.close()
    return 0


def _latest(store: CheckpointStore, processes: Processes) -> tuple[Path, dict[str, Any]] | None:
    """The newest good checkpoint. The main process looks for it; the others read what it found."""
    found = store.latest() if processes.main else None
    path = processes.share(found[0] if found else None)
    if path is None or found is not None:
        return found
    return path, checkpoint.load(path)


def _say_differences(now: dict, saved: dict) -> None:
    """Warns about settings that are not those the run began with; the present ones count."""

    def flat(plain: object, prefix: str = "") -> dict[str, object]:
        if not isinstance(plain, dict):
            return {prefix: plain}
        return {key: leaf for name, value in plain.items() for key, leaf in flat(value, f"{prefix}.{name}").items()}

    present, before = flat(now), flat(saved)
    changed = [
        f"{key[1:]} {before.get(key)} -> {present.get(key)}"
        for key in sorted(present.keys() | before.keys())
        if present.get(key) != before.get(key)
    ]
    if changed:
        warnings.warn(f"settings differ from those of the checkpoint: {', '.join(changed)}", stacklevel=3)
