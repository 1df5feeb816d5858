"""``dcn-det receptive-field``: measures the effective receptive field of a detector."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dcn_det.cli.arguments import Parser, add_config, png, positive, require_files
from dcn_det.cli.effective_dilation import ONE_VIEW
from dcn_det.config import as_config, load_config
from dcn_det.data.build import build_dataset, build_eval_loader
from dcn_det.distributed import resolve_device
from dcn_det.engine.detection import DetectionTask
from dcn_det.engine.testing import load_detector
from dcn_det.errors import UserError
from dcn_det.files import write_bytes, write_json
from dcn_det.inference.build import with_settings_of_weights
from dcn_det.inference.predictor import Predictor
from dcn_det.progress import Progress
from dcn_det.visualize.plots import require_matplotlib
from dcn_det.visualize.receptive_field import ReceptiveField, measure, plot, table, to_plain
from dcn_det.weights import checkpoint


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det receptive-field",
        description="Print the size of the effective receptive field of a detector: the absolute gradient of the unit "
        "in the middle of the last feature map from which boxes are predicted, averaged over images of the test split "
        "(Luo et al., NIPS 2016). The size is 4 standard deviations of the Gaussian fitted to it, in pixels of the "
        "network's input. The theoretical field contains all pixels that can have an influence, in a network without "
        "offsets.",
        examples=[
            "dcn-det receptive-field configs/sample/rfcn_dcn.yaml \\",
            "    --weights runs/rfcn_dcn/last.pth --plot field.png",
        ],
    )
    add_config(result)
    result.add_argument(
        "--weights", type=Path, required=True, help="checkpoint from training or dcn-det convert-weights"
    )
    result.add_argument(
        "--against", type=Path, metavar="FILE", help="checkpoint of another detector to measure on the same images"
    )
    result.add_argument(
        "--images", type=positive, default=20, metavar="N", help="average over the first N images (default: 20)"
    )
    result.add_argument("--save", type=Path, metavar="FILE.json", help="also write all numbers as JSON")
    result.add_argument("--plot", type=png, metavar="FILE.png", help="also draw the gradients")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    config = load_config(args.config, *args.overrides)
    require_files(args, "save", "plot")
    if args.plot is not None:
        require_matplotlib("--plot")
    device = str(resolve_device(config.device))
    state = checkpoint.load(args.weights, checkpoint.TESTING)
    config = as_config(with_settings_of_weights(config, state, args.weights), **ONE_VIEW)
    predictors = {_name(args.weights): DetectionTask.restore(state, args.weights, config, device)}
    if args.against is not None:
        if args.against.resolve() == args.weights.resolve():
            raise UserError(f"--against: '{args.against}' is also that of --weights; give another checkpoint")
        predictors[_name(args.against)] = load_detector(args.against, device)
    classes = next(iter(predictors.values())).names
    dataset = build_dataset(config.data, "test", config.test.resize, progress=Progress("sample image"), classes=classes)
    images = min(args.images, len(dataset))
    radius = (config.test.resize or config.data.resize).max_side // 2

    def field(predictor: Predictor) -> ReceptiveField:
        batches = build_eval_loader(dataset, config.data, 1, done=range(images, len(dataset)))
        model: Any = predictor.model
        return measure(model, batches, images, radius, Progress("image"))

    fields = {name: field(predictor) for name, predictor in predictors.items()}
    print(table(fields))
    print()
    print(f"Gradients of the unit in the middle, averaged over {images} images of {config.data.test_title}.")
    if args.save is not None:
        write_json(args.save, {"config": str(args.config), "split": config.data.test_title, "fields": to_plain(fields)})
        print(f"numbers: '{args.save}'")
    if args.plot is not None:
        write_bytes(args.plot, plot(fields))
        print(f"plot: '{args.plot}'")
    return 0


def _name(path: Path) -> str:
    """Returns the last parts of a path, which tell checkpoints of runs apart."""
    return "/".join(path.resolve().parts[-2:])
