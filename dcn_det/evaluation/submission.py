"""Submission file for COCO's test-dev server."""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dcn_det.data.index import DatasetIndex
from dcn_det.errors import UserError
from dcn_det.evaluation.results import Result, check_results
from dcn_det.files import replacing

MAX_PER_IMAGE = 100
"""Maximum number of detections per image that the server evaluates."""


def submission_name(text: str) -> str:
    """Returns ``text`` if it can be the name of the method in the file name; for argparse.

    Raises:
        ArgumentTypeError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9.-]+", text):
        raise argparse.ArgumentTypeError(f"'{text}' may contain only letters, digits, dots and hyphens")
    return text


def write_submission(folder: Path, name: str, results: Sequence[Result], index: DatasetIndex) -> Path:
    """Writes ``detections_test-dev2017_<name>_results.zip``, which contains a JSON file of the same name.

    Args:
        folder: existing folder.
        name: name of the method, see :func:`submission_name`.
        results: results for the images of ``index``.
        index: the images tested.

    Returns:
        Path of the zip file.

    Raises:
        UserError: the server would refuse or truncate the results: unknown image or category ids, scores outside
            [0, 1], repeated entries, more than 100 detections per image, or no detections.
    """
    check_submission(results, index)
    stem = f"detections_test-dev2017_{name}_results"
    path = folder / f"{stem}.zip"
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        # With a fixed date, the same results give the same file.
        entry = zipfile.ZipInfo(f"{stem}.json", (1980, 1, 1, 0, 0, 0))
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = 0o644 << 16
        archive.writestr(entry, json.dumps(list(results), allow_nan=False))
    return path


def check_submission(results: Sequence[Result], index: DatasetIndex) -> None:
    """Checks that the server would accept the results completely.

    Raises:
        UserError: see :func:`write_submission`.
    """
    if not results:
        raise UserError("submission: no detections; nothing is written")
    sizes = dict(zip(index.image_ids.tolist(), map(tuple, index.sizes.tolist())))
    table = check_results(list(results), sizes, {category.id for category in index.categories}, "bbox", "submission")
    if table.notes:
        raise UserError(f"submission: {table.notes[0]}")
    outside = ((table.scores < 0) | (table.scores > 1)).nonzero()[0]
    if len(outside):
        raise UserError(
            f"submission: entry {outside[0]}: score {table.scores[outside[0]]:g} is outside [0, 1] "
            f"({len(outside)} of {len(table)} entries)"
        )
    image_id, count = Counter(table.image_ids.tolist()).most_common(1)[0]
    if count > MAX_PER_IMAGE:
        raise UserError(
            f"submission: image {image_id} has {count} detections, the server accepts {MAX_PER_IMAGE}; "
            "set test.max_detections=100"
        )
