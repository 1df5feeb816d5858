"""``tools/train.py``: trains what a config describes."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from dcn_det.cli.session import Session
from dcn_det.config import load_with_origins, print_config, to_plain
from dcn_det.engine.build import loop_settings
from dcn_det.engine.logging import RunLog
from dcn_det.engine.store import CheckpointStore
from dcn_det.engine.trainer import Interrupted, Trainer
from dcn_det.errors import UserError
from dcn_det.weights import checkpoint


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(prog="train", description="Trains the detector that a config describes.")
    result.add_argument("config", type=Path, help="YAML file")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the config")
    result.add_argument("--output", type=Path, help="folder of the run (default runs/<config name>)")
    result.add_argument("--resume", action="store_true", help="continue the run in the folder")
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
    config, origins = load_with_origins(args.config, args.overrides)
    if args.print_config:
        print(print_config(config, origins), end="")
        return 0
    output: Path = args.output or Path("runs") / config.name
    store = CheckpointStore(output, config.train.keep_checkpoints)
    if not args.resume and not args.dry_run and store.saved():
        raise UserError(f"'{output}' already holds a run; continue it with --resume or give another --output")

    session = Session(config)
    if args.dry_run:
        print(session.summary())
        return 0
    resumed = None
    if args.resume:
        resumed = store.latest()
        if resumed is None:
            raise UserError(f"'{output}' holds no readable checkpoint to resume from")

    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(print_config(config, origins))
    log = RunLog(output)
    try:
        log.say(session.summary())
        trainer = Trainer(
            session.model,
            session.optimizer,
            session.factor,
            session.train_batches,
            loop_settings(config.train, session.length, args.stop_at),
            store,
            log,
            session.device,
            {"config": to_plain(config), "categories": checkpoint.categories_to_plain(session.categories)},
            session.evaluator(log) if session.test_set is not None else None,
        )
        if resumed is not None:
            path, state = resumed
            _say_differences(to_plain(config), state["config"])
            trainer.load_state(state, path)
            log.say(f"resumed from '{path}' at iteration {trainer.iteration}")
        try:
            trainer.run()
        except Interrupted as stop:
            log.say(str(stop))
            return 128 + stop.signum
        if trainer.iteration < session.length:
            log.say(f"stopped at iteration {trainer.iteration} as asked; continue with --resume")
        else:
            checkpoint.save(output / "last.pth", trainer.state())
            log.say(f"done: '{output / 'last.pth'}'")
    finally:
        log.close()
    return 0


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
