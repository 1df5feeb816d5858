"""``dcn-det sampling``: draws where the deformable layers of a detector sample an image."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcn_det.cli.arguments import Parser, natural, number
from dcn_det.engine.testing import load_detector
from dcn_det.errors import UserError
from dcn_det.files import write_text
from dcn_det.images import Image, read_image, write_image

TITLES = {
    "sampling": "Sampling locations (unit in green)",
    "offsets": "Mean length of the offsets of each layer",
    "parts": "Bins of deformable RoI pooling (red) of the best detections (yellow)",
}


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det sampling",
        description="Draw where the deformable layers of a detector sample an image: sampling.png, the locations of "
        "the last (at most three) deformable convolutions of the backbone, stacked (729 for three 3x3 layers), as in "
        "the paper's Figure 6; offsets.png, heat maps of the length of the offsets; parts.png, the bins of deformable "
        "RoI pooling, as in Figure 7; and sampling.html, a self-contained page where a click on the image shows the "
        "locations of that point. The checkpoint contains config and class names.",
        notes="Coordinates are pixels of the image: 0,0 is its top-left corner, and the middle of the first pixel is "
        "0.5,0.5. A cell of a feature map stands at the middle of the pixels that it covers. The boxes of the "
        "detections are pooled as RoIs.",
        examples=[
            "dcn-det sampling --weights runs/rfcn_dcn/last.pth photo.jpg --output pictures",
            "dcn-det sampling --weights FILE photo.jpg --output pictures --at 120,80",
        ],
    )
    result.add_argument("image", type=Path, help="image file")
    result.add_argument(
        "--weights", type=Path, required=True, help="checkpoint from training or dcn-det convert-weights"
    )
    result.add_argument("--output", type=Path, required=True, help="output folder")
    result.add_argument(
        "--at",
        type=_point,
        action="append",
        metavar="X,Y",
        help="point to show; can be repeated (default: on a small detection, on a large one, and on background)",
    )
    result.add_argument("--score", type=number, default=0.3, help="minimum score of detections (default: %(default)s)")
    result.add_argument(
        "--parts", type=natural, default=8, metavar="N", help="maximum number of detections on parts.png (default: 8)"
    )
    result.add_argument("--config", type=Path, help="YAML file to use instead of the config in the checkpoint")
    result.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    image = read_image(args.image, upright=True)
    height, width = image.shape[:2]
    for x, y in args.at or ():
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(f"--at: {x:g},{y:g} is outside '{args.image}', which has {width}x{height} pixels")
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output: '{args.output}' is not a folder")
    predictor = load_detector(args.weights, args.device, args.config)
    from dcn_det.visualize.observation import automatic_points, observe
    from dcn_det.visualize.sampling_page import page
    from dcn_det.visualize.sampling_pictures import length_picture, parts_picture, sampling_picture

    seen = observe(predictor, image, args.score, args.parts)
    if seen.stack is None and not seen.bins:
        raise UserError(f"the detector in '{args.weights}' has no deformable layer; see model.backbone.deform.blocks")
    pictures: dict[str, Image] = {}
    points: dict[str, tuple[float, float]] = {}
    if seen.stack is not None:
        points = {f"point {number}": point for number, point in enumerate(args.at or (), start=1)}
        points = points or automatic_points(seen.detections.boxes.numpy(), (height, width))
        pictures["sampling"] = sampling_picture(image, seen.stack, points)
        pictures["offsets"] = length_picture(image, seen.stack)
    if seen.parts:
        pictures["parts"] = parts_picture(image, seen.parts, predictor.names)
    elif seen.bins:
        print(f"no detection has a score of {args.score:g} or more: no parts.png")
    for name, picture in pictures.items():
        write_image(args.output / f"{name}.png", picture)
    captioned = {TITLES[name]: picture for name, picture in pictures.items() if name != "sampling"}
    write_text(args.output / "sampling.html", page(args.image.name, image, seen.stack, points, captioned))
    print(f"{', '.join(f'{name}.png' for name in pictures)} and sampling.html: '{args.output}'")
    return 0


def _point(text: str) -> tuple[float, float]:
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"'{text[:40]}', expected X,Y")
    return number(parts[0]), number(parts[1])
