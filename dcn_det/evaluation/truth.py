"""Ground truth of an annotation file or a test split: reading results for it and computing their metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcn_det.config import Config
from dcn_det.config.data import DataConfig, coco_title
from dcn_det.config.registry import resolve
from dcn_det.config.testing import EvaluationConfig
from dcn_det.data.formats import open_split
from dcn_det.errors import UserError
from dcn_det.evaluation.backends import COUNTED, IouType
from dcn_det.evaluation.coco import evaluate
from dcn_det.evaluation.ground_truth import GroundTruth, load_ground_truth
from dcn_det.evaluation.metrics import Metrics
from dcn_det.evaluation.results import Result, ResultTable, check_results
from dcn_det.files import iterate_json

if TYPE_CHECKING:
    from dcn_det.data.index import DatasetIndex


@dataclass(frozen=True)
class Truth:
    """Ground truth that results are evaluated against, with COCO's metrics unless a subclass defines others.

    A data format with its own metrics or result files sets ``DataConfig.truth`` to a subclass.

    Attributes:
        coco: ground truth in COCO's format.
        image_folder: folder of the images, to which file names are relative; None if only annotations are given.
        title: name of the split, see ``DataConfig.test_title``.
    """

    coco: GroundTruth
    image_folder: Path | None = None
    title: str = ""

    @staticmethod
    def of_file(path: Path) -> Truth:
        """Reads a COCO annotation file.

        Raises:
            UserError: see ``load_ground_truth``.
        """
        return Truth(load_ground_truth(path), title=coco_title(str(path)))

    @staticmethod
    def of_config(config: Config) -> Truth:
        """Reads the test split of a config.

        Raises:
            UserError: see ``open_split`` and ``DataFormat.records``.
        """
        split = open_split(config.data, "test")
        return truth_class(config.data)(GroundTruth.of(split.records()), split.folder, config.data.test_title)

    def read(self, path: Path, iou_type: IouType = "bbox") -> ResultTable:
        """Reads results from a JSON file in COCO's format or from a folder of result files of the data format.

        Raises:
            UserError: the results cannot be read or evaluated; see ``check_results``.
        """
        entries = self.read_folder(path) if path.is_dir() else iterate_json(path)
        return check_results(entries, self.coco.images, self.coco.category_ids, iou_type, str(path))

    def read_folder(self, folder: Path) -> Iterable[Result]:
        """Reads the result files that :meth:`write_results` writes.

        Raises:
            UserError: the files are malformed, or the data format has no result files.
        """
        raise UserError(f"'{folder}' is a folder; expected a results file (JSON)")

    @staticmethod
    def write_results(folder: Path, results: Sequence[Result], index: DatasetIndex, data: DataConfig) -> Path | None:
        """Writes result files of the data format, in addition to ``detections.json``.

        Args:
            folder: output folder of the test.
            results: results in COCO's format.
            index: the images tested; it may have no annotations.
            data: the settings.

        Returns:
            Path of the file or folder; None if the format has no result files.
        """
        return None

    def measure(
        self,
        results: ResultTable | Sequence[Result],
        settings: EvaluationConfig | None = None,
        iou_type: IouType = "bbox",
    ) -> Metrics:
        """Computes the metrics of the data format.

        Args:
            results: results in COCO's format, as dicts or as returned by :meth:`read`.
            settings: settings of the evaluation; None uses the defaults.
            iou_type: IoU of boxes or of masks.

        Raises:
            UserError: the results cannot be evaluated; see ``check_results``.
        """
        settings = settings or EvaluationConfig()
        return evaluate(self.coco, results, iou_type, settings.backend, settings.max_detections or COUNTED)

    def measures(self, results: ResultTable, settings: EvaluationConfig) -> list[Metrics]:
        """Computes all metrics for a report: those of the data format first, COCO's last."""
        return [self.measure(results, settings)]


def truth_class(data: DataConfig) -> type[Truth]:
    """Returns the class that evaluates detections on this data format."""
    found: Any = resolve(data.truth)
    assert issubclass(found, Truth)
    return found
