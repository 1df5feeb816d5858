"""``dcn-det mnist``: compares deformable convolution with other methods on digits of different sizes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from dcn_det.cli.arguments import Parser, positive, require_files
from dcn_det.distributed import resolve_device
from dcn_det.env import usable_cores
from dcn_det.files import write_bytes
from dcn_det.mnist.data import FOLDER, LARGEST_SCALE, SHIFT, read
from dcn_det.mnist.report import picture, table
from dcn_det.mnist.runs import SCHEDULES, TEST_EVERY, Results, load, run_all, settings
from dcn_det.progress import say_on_stderr
from dcn_det.visualize.plots import require_matplotlib


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det mnist",
        description="Train small networks on MNIST digits of different sizes, and print their accuracy on regular and "
        "on scaled digits, in Markdown: a plain network, an affine Spatial Transformer, an inverse compositional one "
        "with two warps, Active Convolution, and deformable convolution without and with modulation.",
        notes=f"Scaled digits are from 1 to {LARGEST_SCALE:g} times smaller, and shifted by up to "
        f"{SHIFT:g} of the image before that. Protocol 'sources' is that of the published numbers: the plain network "
        "is trained on regular digits only; the deformable one starts from its weights and is trained on scaled "
        "digits. Protocol 'fair' trains all networks alike on the same scaled digits.",
        examples=["dcn-det mnist --save digits.json --picture digits.png"],
    )
    result.add_argument(
        "--data",
        type=Path,
        default=FOLDER,
        metavar="DIR",
        help="folder of MNIST's four files, gzipped or not, or the folder with MNIST/raw; what is missing is "
        "downloaded (default: %(default)s)",
    )
    result.add_argument("--seeds", type=positive, default=3, help="number of seeds (default: %(default)s)")
    result.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    result.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="networks trained at the same time, with one thread each (default: number of cores; 1 on a GPU)",
    )
    result.add_argument(
        "--save", type=Path, metavar="FILE.json", help="write results after each run; continue those in the file"
    )
    result.add_argument("--picture", type=Path, metavar="FILE.png", help="draw sampling points, and accuracy by scale")
    result.add_argument(
        "--show", type=Path, metavar="FILE.json", help="print the table of a file written by --save; train nothing"
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    require_files(args, "save", "picture")
    if args.picture is not None:
        require_matplotlib("--picture")
    if args.show is not None:
        record = load(args.show)
        print(table(record))
        if args.picture is not None:
            write_bytes(args.picture, picture(record, read(args.data)[1].every(TEST_EVERY)))
        return 0
    device = resolve_device(args.device)
    training, testing = (digits.to(device) for digits in read(args.data))
    testing = testing.every(TEST_EVERY)
    workers = args.workers or (usable_cores() if device.type == "cpu" else 1)
    threads = 1 if workers > 1 else torch.get_num_threads()
    results = Results(args.save, settings(training, testing, SCHEDULES), device.type, threads)
    run_all(results, training, testing, range(args.seeds), SCHEDULES, say_on_stderr, workers)
    print(table(results.record))
    if args.picture is not None:
        write_bytes(args.picture, picture(results.record, testing))
        print(f"picture: '{args.picture}'")
    return 0
