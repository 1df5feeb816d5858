"""``dcn-det download``: gets COCO, Pascal VOC, FOD-A and ImageNet weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcn_det.cli.arguments import Parser, listing
from dcn_det.download import fod
from dcn_det.download.catalog import COCO, VOC, Collection
from dcn_det.download.run import download, plan
from dcn_det.errors import UserError

COLLECTIONS = ("coco", "voc", "fod", "weights")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det download",
        description="Download and extract data sets and weights. Prints what is missing and its size, then gets it. "
        "After an interruption, the same command continues; complete parts are skipped.",
        notes=listing(
            "parts, * by default",
            {
                "coco": _names(COCO),
                "voc": _names(VOC),
                "fod": "one part",
                "weights": "resnet101* and torchvision's others",
            },
        ),
        examples=[
            "dcn-det download coco --to /data/coco",
            "dcn-det download voc --dry-run",
        ],
    )
    result.add_argument("collection", choices=COLLECTIONS, help="what to download")
    result.add_argument("--parts", nargs="+", metavar="PART", help="parts to download (default: see below)")
    result.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="folder (default: datasets/coco, datasets/voc or datasets/fod; for weights torch's cache, in which "
        "torchvision looks)",
    )
    result.add_argument(
        "--mirror", metavar="URL", help="address to download from, with the publisher's paths (fod: a git repository)"
    )
    result.add_argument(
        "--from", type=Path, dest="source", metavar="DIR", help="fod: copy from this folder instead of using git"
    )
    result.add_argument("--dry-run", action="store_true", help="print what is missing and stop")
    return result


def _names(collection: Collection) -> str:
    return " ".join(f"{name}*" if name in collection.default else name for name in collection.parts)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    if args.collection == "fod":
        return _fod(args)
    if args.source:
        raise UserError(f"--from: for fod only; put archives of {args.collection} into the folder that --to names")
    collection = _collection(args.collection)
    parts, folder = collection.select(args.parts), args.to or collection.folder
    print(plan(parts, folder))
    if args.collection == "weights":
        print(_authors())
    if not args.dry_run:
        download(parts, folder, args.mirror or collection.base, print)
    return 0


def _fod(args: argparse.Namespace) -> int:
    if args.parts:
        raise UserError("--parts: fod is one part; leave it out")
    if args.source and args.mirror:
        raise UserError("give --from or --mirror, not both")
    folder = args.to or fod.FOLDER
    print(fod.plan(folder, args.source))
    if not args.dry_run:
        fod.get(folder, args.mirror or fod.REPOSITORY, print, args.source)
    return 0


def _collection(name: str) -> Collection:
    if name != "weights":
        return {"coco": COCO, "voc": VOC}[name]
    from dcn_det.weights.torchvision import collection

    return collection()


def _authors() -> str:
    from dcn_det.weights.released import FILES, LINKS

    lines = [f"The authors' networks can only be downloaded in a browser, from {LINKS}. To convert them:"]
    for file, config in FILES.items():
        out = f"weights/{file.removesuffix('-0000.params')}.safetensors"
        lines.append(f"  dcn-det convert-weights weights/{file} {out} --config configs/{config}.yaml")
    return "\n".join(lines)
