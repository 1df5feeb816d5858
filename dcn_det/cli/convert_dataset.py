"""``dcn-det convert-dataset``: writes annotations of any format in COCO's format."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, Literal

from dcn_det.cli.arguments import Parser
from dcn_det.config import load_config
from dcn_det.config.data import DataConfig
from dcn_det.data.formats import open_split
from dcn_det.data.formats.coco import in_folder
from dcn_det.data.records import Records, to_coco
from dcn_det.errors import UserError
from dcn_det.files import write_json
from dcn_det.progress import Progress
from dcn_det.starting.data import SHARE, find_data, section_of

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det convert-dataset",
        description="Write the annotations of boxes of a config, or of a folder in any format that dcn-det init finds, "
        "in COCO's format. Images are not copied; file names are relative to the root of the data set.",
        examples=["dcn-det convert-dataset photos/flowers --output flowers_coco"],
    )
    result.add_argument("source", type=Path, metavar="CONFIG|DIR", help="YAML file, or folder of annotated images")
    result.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the config")
    result.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR|FILE.json",
        help="folder for train.json and test.json, or one file for the images of all splits",
    )
    result.add_argument("--force", action="store_true", help="overwrite files")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_intermixed_args(argv)
    data = _data(args.source, args.overrides)
    single = args.output.suffix.lower() == ".json" and not args.output.is_dir()
    splits = [split for split in SPLITS if getattr(data, split) is not None]
    files = {split: args.output if single else args.output / f"{split}.json" for split in splits}
    for path in files.values():
        if path.exists() and not args.force:
            raise UserError(f"--output: '{path}' exists; add --force to overwrite it, or give another name")
    documents = {split: _document(data, split) for split in splits}
    if single:
        documents = {splits[0]: _united(list(documents.values()))}
    for split, document in documents.items():
        write_json(files[split], document)
        images, objects = len(document["images"]), len(document["annotations"])
        print(f"written: '{files[split]}' with {images} images, {objects} objects")
    print("to use it: " + " ".join(_settings(data, files)))
    return 0


def _data(source: Path, overrides: list[str]) -> DataConfig:
    if not source.is_dir():
        return load_config(source, *overrides).data
    if overrides:
        raise UserError(f"{overrides[0]}: settings override those of a config, and '{source}' is a folder")
    found = find_data(source)
    print("\n".join(found.lines))
    return section_of(found.settings)


def _document(data: DataConfig, split: Literal["train", "test"]) -> dict[str, Any]:
    opened = open_split(data, split, Progress("sample image"))
    records = opened.records(labelled=split == "train")
    for note in records.notes:
        print(f"{split}: {note}")
    return to_coco(_below_root(records, opened.folder, opened.root))


def _below_root(records: Records, folder: Path, root: Path) -> Records:
    """Returns the records with file names relative to the root of the data set."""
    place = os.path.relpath(folder, root)
    if place.startswith(".."):
        raise UserError(
            f"images in {folder} are outside data.root {root}; set data.root to a folder that contains them"
        )
    return in_folder(records, place)


def _united(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the images of several documents, each once.

    Raises:
        UserError: the documents have different categories, or different images of the same id.
    """
    first, *others = documents
    images = {row["id"]: row for row in first["images"]}
    rows = list(first["annotations"])
    for other in others:
        if other["categories"] != first["categories"]:
            raise UserError("--output: the splits have different categories; give a folder instead of a file")
        new = [row for row in other["images"] if row["id"] not in images]
        clash = [row for row in other["images"] if images.get(row["id"], row)["file_name"] != row["file_name"]]
        if clash:
            name = clash[0]["file_name"]
            raise UserError(f"--output: the id of image {name} is used in both splits; give a folder instead of a file")
        ids = {row["id"] for row in new}
        images |= {row["id"]: row for row in new}
        rows += [row for row in other["annotations"] if row["image_id"] in ids]
    annotations = [{**row, "id": number} for number, row in enumerate(rows, start=1)]
    return {**first, "images": list(images.values()), "annotations": annotations}


def _settings(data: DataConfig, files: dict[Literal["train", "test"], Path]) -> list[str]:
    """Returns ``key=value`` settings that use the files."""
    values: dict[str, Any] = {"data.kind": "coco", "data.root": str(Path(data.root).absolute())}
    whole = len(set(files.values())) < len(files)
    for split, path in files.items():
        values[f"data.{split}"] = {"images": ".", "annotations": str(path.absolute())}
        if whole:
            values[f"data.{split}"]["part"] = [0, SHARE] if split == "train" else [SHARE, 1]
    return [f"'{key}={value if isinstance(value, str) else json.dumps(value)}'" for key, value in values.items()]
