"""``dcn-det effective-dilation``: measures how far deformable convolutions reach, as in the paper's Table 2."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dcn_det.cli.arguments import Parser, add_config, png, positive, require_files
from dcn_det.config import as_config, load_config
from dcn_det.data.build import build_dataset
from dcn_det.distributed import resolve_device
from dcn_det.engine.detection import DetectionTask
from dcn_det.files import write_bytes, write_json
from dcn_det.inference.build import with_settings_of_weights
from dcn_det.progress import Progress
from dcn_det.visualize.effective_dilation import measure, plot, published, table, to_plain
from dcn_det.visualize.plots import require_matplotlib
from dcn_det.weights import checkpoint

ONE_VIEW: dict[str, Any] = {"test.scales": None, "test.flip": False, "test.box_average": None}


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det effective-dilation",
        description="Print mean and standard deviation of the effective dilation of each deformable convolution, for "
        "filters on small, medium and large objects and on background of the test split (the paper's Table 2). The "
        "effective dilation of a filter is the mean distance over all pairs of horizontally or vertically adjacent "
        "sampling points (12 for a 3x3 filter), in cells of the layer's input; without offsets it is the layer's "
        "dilation.",
        notes="A filter is on the smallest box that contains its center in the image. By the area of the box in the "
        "original image, in pixels, objects are small below 32^2, large from 96^2 on, else medium, as in COCO; the "
        "paper does not give its bounds. Filters on padding, and those on crowds or difficult objects only, are not "
        "counted. Each offset group of each position is one filter. Images are shown once, at the size of "
        "test.resize, else data.resize.",
        examples=[
            "dcn-det effective-dilation configs/sample/class_aware_rpn_dcn.yaml \\",
            "    --weights runs/rpn_dcn/last.pth --images 50 --plot dilation.png",
        ],
    )
    add_config(result)
    result.add_argument(
        "--weights", type=Path, required=True, help="checkpoint from training or dcn-det convert-weights"
    )
    result.add_argument("--images", type=positive, metavar="N", help="measure the first N images (default: all)")
    result.add_argument("--save", type=Path, metavar="FILE.json", help="also write all numbers as JSON")
    result.add_argument("--plot", type=png, metavar="FILE.png", help="also draw them")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    config = load_config(args.config, *args.overrides)
    require_files(args, "save", "plot")
    if args.plot is not None:
        require_matplotlib("--plot")
    state = checkpoint.load(args.weights, checkpoint.TESTING)
    config = as_config(with_settings_of_weights(config, state, args.weights), **ONE_VIEW)
    predictor = DetectionTask.restore(state, args.weights, config, str(resolve_device(config.device)))
    dataset = build_dataset(
        config.data, "test", config.test.resize, progress=Progress("sample image"), classes=predictor.names
    )
    images = min(args.images or len(dataset), len(dataset))
    layers = measure(predictor, dataset, config, images, Progress("image"))
    paper = published(config)
    print(table(layers, paper))
    print()
    print(
        f"Mean +- standard deviation of the effective dilation, in cells of the layer's input (number of filters), on "
        f"{images} images of {config.data.test_title}."
    )
    if args.save is not None:
        record = {"config": str(args.config), "weights": str(args.weights), "split": config.data.test_title}
        write_json(args.save, {**record, "images": images, **to_plain(layers, paper)})
        print(f"numbers: '{args.save}'")
    if args.plot is not None:
        write_bytes(args.plot, plot(layers, paper))
        print(f"plot: '{args.plot}'")
    return 0
