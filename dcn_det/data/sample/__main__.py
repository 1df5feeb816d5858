"""``python -m dcn_det.data.sample``: writes the embedded sample data set."""

from __future__ import annotations

import argparse

from dcn_det.data.sample.make import DEFAULT_ROOT, TRAIN_IMAGES, VAL_IMAGES, make_sample
from dcn_det.entry import run
from dcn_det.progress import Progress


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dcn_det.data.sample", description="Write the sample data set of digits over photographs."
    )
    parser.add_argument("root", nargs="?", default=DEFAULT_ROOT, help="folder to write (default: %(default)s)")
    parser.add_argument("--train-images", type=int, default=TRAIN_IMAGES, help="default: %(default)s")
    parser.add_argument("--val-images", type=int, default=VAL_IMAGES, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    print(make_sample(args.root, args.train_images, args.val_images, args.seed, Progress("image")))
    return 0


if __name__ == "__main__":
    run(main)
