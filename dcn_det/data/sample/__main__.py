"""``python -m dcn_det.data.sample``: writes the embedded sample data set."""

from __future__ import annotations

import argparse

from dcn_det.data.sample.digits import DIGITS_ROOT, TRAIN_DIGITS, VAL_DIGITS, make_digits
from dcn_det.data.sample.make import DEFAULT_ROOT, TRAIN_IMAGES, VAL_IMAGES, make_sample
from dcn_det.data.sample.masks import MASKS_ROOT, make_sample_masks
from dcn_det.entry import run
from dcn_det.progress import Progress


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dcn_det.data.sample", description="Write the sample data set of digits over photographs."
    )
    roots = f"{DEFAULT_ROOT}, {DIGITS_ROOT} with --digits, {MASKS_ROOT} with --masks"
    parser.add_argument("root", nargs="?", help=f"folder to write (default: {roots})")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--digits", action="store_true", help="write single digits, in one folder per class, instead")
    form.add_argument("--masks", action="store_true", help="write larger digits, with masks instead of boxes")
    parser.add_argument("--train-images", type=int, help=f"default: {TRAIN_IMAGES}, or {TRAIN_DIGITS} with --digits")
    parser.add_argument("--val-images", type=int, help=f"default: {VAL_IMAGES}, or {VAL_DIGITS} with --digits")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    make = make_digits if args.digits else make_sample_masks if args.masks else make_sample
    given = {"root": args.root, "train_images": args.train_images, "val_images": args.val_images}
    chosen = {name: value for name, value in given.items() if value is not None}
    print(make(**chosen, seed=args.seed, progress=Progress("image")))
    return 0


if __name__ == "__main__":
    run(main)
