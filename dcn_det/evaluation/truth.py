"""Ground truth of either kind, from an annotation file or from a config's test split, and results for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcn_det.config import Config
from dcn_det.config.data import CocoSplitConfig, VocSplitConfig
from dcn_det.errors import UserError
from dcn_det.evaluation.coco import Backend, IouType, evaluate, load_ground_truth, load_results
from dcn_det.evaluation.ground_truth import GroundTruth
from dcn_det.evaluation.metrics import Metrics
from dcn_det.evaluation.results import Result, ResultTable, check_results
from dcn_det.files import iterate_json

if TYPE_CHECKING:
    from dcn_det.data.voc import VocImage


@dataclass(frozen=True)
class Truth:
    """Ground truth that results can be read for and measured against.

    Attributes:
        coco: in COCO's form; of VOC data, difficult objects are crowds.
        voc: in VOC's form, for VOC data.
        classes: names, in the order of the categories.
        image_folder: what the images' file names are relative to, when a config says so.
    """

    coco: GroundTruth
    classes: tuple[str, ...]
    voc: Sequence[VocImage] | None = None
    image_folder: Path | None = None

    @classmethod
    def of_file(cls, path: Path) -> Truth:
        """From COCO annotations."""
        truth = load_ground_truth(path)
        return cls(truth, tuple(category.name for category in truth.categories))

    @classmethod
    def of_config(cls, config: Config) -> Truth:
        """From the test split of a config.

        Raises:
            UserError: there is none, or its files are missing or malformed.
        """
        split, root = config.data.test, Path(config.data.root)
        if split is None:
            raise UserError("data.test: is null, there is nothing to evaluate against")
        if isinstance(split, CocoSplitConfig):
            if not (root / split.annotations).is_file():
                raise UserError(f"data.test.annotations: no file {root / split.annotations} (data.root is {root})")
            truth = cls.of_file(root / split.annotations)
            return cls(truth.coco, truth.classes, image_folder=root / split.images)
        from dcn_det.data.voc import VOC_CLASSES, as_coco, read_sets

        assert isinstance(split, VocSplitConfig)
        classes = config.data.classes or VOC_CLASSES
        images = read_sets(root, split.sets, classes)
        return cls(load_ground_truth(as_coco(images, classes)), classes, images, root)

    def read(self, path: Path, iou_type: IouType = "bbox") -> ResultTable:
        """Reads a results file; of VOC data, a folder of VOC result files will do.

        Raises:
            UserError: see ``load_results``, ``read_voc_results``.
        """
        if path.is_dir() and self.voc is not None:
            from dcn_det.evaluation.voc import read_voc_results

            entries: Any = iter(read_voc_results(path, self.voc, self.classes))
        elif path.is_dir():
            raise UserError(f"'{path}' is a folder; expected a results file (JSON)")
        elif self.voc is None:
            return load_results(path, self.coco, iou_type)
        else:
            entries = iterate_json(path)
        return check_results(entries, self.coco.images, self.coco.category_ids, iou_type, str(path))

    def measure(
        self,
        results: ResultTable | Sequence[Result],
        iou_type: IouType = "bbox",
        backend: Backend = "auto",
        voc_ap: Any = "11-point",
    ) -> Metrics:
        """VOC's metrics of VOC data, else COCO's."""
        if self.voc is None:
            return evaluate(self.coco, results, iou_type, backend)
        from dcn_det.evaluation.voc import evaluate_voc

        return evaluate_voc(self.voc, results, self.classes, voc_ap)
