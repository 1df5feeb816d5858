"""Rows and columns of the paper's tables, and of one like them on public photographs.

Published values are in the ``expected:`` of the configs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

from dcn_det.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: heading.
        metric: name of the metric, see ``DataConfig.metrics``.
        factor: shown per unit of the metric: 100 for fractions in percent.
        digits: decimals.
        spread: whether seeds differ in it by chance, so that deviations are of interest.
    """

    title: str
    metric: str
    factor: float = 100.0
    digits: int = 1
    spread: bool = True

    def text(self, value: float | None, signed: bool = False, error: float | None = None) -> str:
        """Formats a value, with its standard deviation or error if known, as the paper does; empty for None."""
        if value is None:
            return ""
        shown = f"{self.factor * value:{'+' if signed else ''}.{self.digits}f}"
        return f"{shown} \u00b1 {self.factor * error:.{self.digits}f}" if error is not None and self.spread else shown


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: method and variant.
        config: config to test, such as ``coco/rfcn_air_ms``; empty if this project does not have the method.
        trained: config whose training gives the weights; that of ``config`` by default.
        published: values of the paper by metric that are no results of the config, such as times.
        layer: the layer whose offsets are measured, by its name in the detector; empty for results of the detector.
        baseline: label of the row from which differences are taken; empty for none.
        peer: whether torchvision's twin of the config is trained and tested instead.
    """

    label: str
    config: str = ""
    trained: str = ""
    published: Mapping[str, float] = field(default_factory=dict, compare=False)
    layer: str = ""
    baseline: str = ""
    peer: bool = False

    @property
    def training(self) -> str:
        return self.trained or self.config


@dataclass(frozen=True)
class Table:
    """A table of the paper, or one like it.

    Attributes:
        name: as on the command line.
        title: what it shows.
        rows, columns: in the order of the paper.
        note: about the cells that stay empty.
        timed: whether it shows sizes and times of untrained networks, not accuracy.
        seeds: number of trainings of each row, with different seeds, unless another number is given.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    note: str = ""
    timed: bool = False
    seeds: int = 1

    def select(self, patterns: Sequence[str]) -> tuple[Row, ...]:
        """Returns the rows whose config matches a pattern such as ``coco/rfcn_*`` or ``rfcn_*``; all for none.

        Raises:
            UserError: a pattern matches no row.
        """
        chosen: set[Row] = set()
        for pattern in patterns:
            found = [row for row in self.rows if row.config and _matches(row.config, pattern)]
            if not found:
                names = [row.config.partition("/")[2] for row in self.rows if row.config]
                raise UserError(
                    f"--rows: '{pattern}' is no row of {self.name}{did_you_mean(pattern, names)}; rows: "
                    f"{', '.join(names)}"
                )
            chosen.update(found)
        return tuple(row for row in self.rows if not patterns or row in chosen)


def _matches(config: str, pattern: str) -> bool:
    return fnmatch(config, pattern) or fnmatch(config.partition("/")[2], pattern)


_DETECTORS = {"class_aware_rpn": "class-aware RPN", "faster_rcnn": "Faster R-CNN", "rfcn": "R-FCN"}
_VOC = (Column("mIoU", "mIoU"), Column("mAP@0.5", "mAP50"), Column("mAP@0.7", "mAP70"))
_COCO = (
    Column("AP", "AP"),
    Column("AP50", "AP50"),
    Column("S", "APs"),
    Column("M", "APm"),
    Column("L", "APl"),
)
_SETS = {"voc": "Pascal VOC", "cityscapes": "Cityscapes"}
"""Data sets of DeepLab by folder of configs."""


def _voc(variants: Sequence[tuple[str, str, str]], shared: dict[str, str]) -> Iterator[Row]:
    """Yields the rows of Table 1 or 3: label, suffix of the config, and models that have the variant."""
    models = {f"{folder}/deeplab": f"DeepLab on {title}" for folder, title in _SETS.items()}
    models |= {f"voc/{detector}": title for detector, title in _DETECTORS.items()}
    for model, title in models.items():
        for label, suffix, names in variants:
            if model.partition("/")[2] in names:
                trained = shared.get(suffix)
                yield Row(f"{title}, {label}", f"{model}_r101_{suffix}", f"{model}_r101_{trained}" if trained else "")


_ALL, _TWO_STAGE = "deeplab class_aware_rpn faster_rcnn rfcn", "faster_rcnn rfcn"
TABLE_1 = Table(
    "table1",
    "Number of deformable convolutions, in percent: DeepLab on VOC 2012 val and Cityscapes val, others on VOC 2007 "
    "test",
    tuple(
        _voc(
            [
                ("no deformable layer", "atrous2", _ALL),
                ("res5c", "dconv1", _ALL),
                ("res5b-c", "dconv2", _ALL),
                ("res5a-c", "dconv3", _ALL),
                ("res5a-c and res4b20-22", "dconv6", _ALL),
            ],
            {"dconv3": "dconv"},
        )
    ),
    _VOC,
)
TABLE_2 = Table(
    "table2",
    "Effective dilation of deformable filters on objects and background, VOC 2007 test, in cells, with deviation",
    tuple(
        Row(
            f"R-FCN, res5{block}", "voc/rfcn_r101_dconv3", "voc/rfcn_r101_dconv", layer=f"backbone.layer4.{index}.conv2"
        )
        for index, block in reversed(list(enumerate("abc")))
    ),
    tuple(
        Column(title, f"{place}{suffix}", 1.0)
        for place in ("small", "medium", "large", "background")
        for title, suffix in ((place, ""), ("+-", " std"))
    ),
)
TABLE_3 = Table(
    "table3",
    "Atrous and deformable convolution and RoI pooling, in percent: DeepLab on VOC 2012 val and Cityscapes val, others "
    "on VOC 2007 test",
    tuple(
        _voc(
            [
                ("atrous 2,2,2", "atrous2", _ALL),
                ("atrous 4,4,4", "atrous4", _ALL),
                ("atrous 6,6,6", "atrous6", _ALL),
                ("atrous 8,8,8", "atrous8", _ALL),
                ("deformable convolution", "dconv", _ALL),
                ("deformable RoI pooling", "dpool", _TWO_STAGE),
                ("both", "dcn", _TWO_STAGE),
            ],
            {},
        )
    ),
    _VOC,
)


TABLE_4 = Table(
    "table4",
    "Parameters without RPN and seconds per image (DeepLab: 1024x2048 and 360x600; others: 600x1000), with "
    "post-processing in the last column",
    (
        Row("DeepLab@C", "cityscapes/deeplab_r101_atrous2", published={"parameters": 46.0e6}),
        Row("DeepLab@C, deformable", "cityscapes/deeplab_r101_dconv", published={"parameters": 46.1e6}),
        Row("DeepLab@V", "voc/deeplab_r101_atrous2", published={"parameters": 46.0e6, "testing": 0.094}),
        Row("DeepLab@V, deformable", "voc/deeplab_r101_dconv", published={"parameters": 46.1e6, "testing": 0.098}),
        Row("class-aware RPN", "voc/class_aware_rpn_r101_atrous2", published={"parameters": 46.0e6}),
        Row("class-aware RPN, deformable", "voc/class_aware_rpn_r101_dconv", published={"parameters": 46.1e6}),
        Row("Faster R-CNN", "voc/faster_rcnn_r101_atrous2", published={"parameters": 58.3e6, "network": 0.147}),
        Row("Faster R-CNN, deformable", "voc/faster_rcnn_r101_dcn", published={"parameters": 59.9e6, "network": 0.192}),
        Row(
            "R-FCN",
            "voc/rfcn_r101_atrous2",
            published={"parameters": 47.1e6, "network": 0.143, "testing": 0.170},
        ),
        Row(
            "R-FCN, deformable",
            "voc/rfcn_r101_dcn",
            published={"parameters": 49.5e6, "network": 0.169, "testing": 0.193},
        ),
    ),
    (
        Column("parameters (M)", "parameters", 1e-6),
        Column("network (s)", "network", 1.0, 3),
        Column("in all (s)", "testing", 1.0, 3),
    ),
    "The paper's times are of an NVIDIA K40.",
    timed=True,
)


def _pairs(name: str, backbone: str) -> tuple[Row, Row]:
    """Returns the rows of a detector on a backbone, plain and deformable."""
    detector, _, _ = name.rpartition("_")
    label = f"{_DETECTORS[detector]}, {backbone}"
    return (
        Row(label, f"coco/{name}"),
        Row(f"{label}, deformable", f"coco/{name}_dcn"),
    )


def _tested(suffix: str, marks: str) -> tuple[Row, Row]:
    """Returns the rows of R-FCN on Aligned-Inception-ResNet with other settings of testing."""
    return (
        Row(f"R-FCN, AIR, {marks}", f"coco/rfcn_air_{suffix}", "coco/rfcn_air"),
        Row(f"R-FCN, AIR, deformable, {marks}", f"coco/rfcn_air_dcn_{suffix}", "coco/rfcn_air_dcn"),
    )


TABLE_5 = Table(
    "table5",
    "COCO test-dev, in percent; M: multi-scale testing, B: iterative bounding box average",
    (
        *_pairs("class_aware_rpn_r101", "ResNet-101"),
        *_pairs("faster_rcnn_r101", "ResNet-101"),
        *_pairs("rfcn_r101", "ResNet-101"),
        *_pairs("faster_rcnn_air", "AIR"),
        *_pairs("rfcn_air", "AIR"),
        *_tested("ms", "M"),
        *_tested("ms_boxavg", "M+B"),
    ),
    _COCO,
)


def _fod(name: str, label: str, variants: Sequence[tuple[str, str]]) -> Iterator[Row]:
    """Yields the plain row of a detector, and the rows that are compared with it."""
    yield Row(label, f"fod/{name}")
    for suffix, words in variants:
        yield Row(f"{label}, {words}", f"fod/{name}_{suffix}", baseline=label)


_DCONV, _DPOOL = ("dconv", "deformable convolution"), ("dpool", "deformable RoI pooling")
FOD = Table(
    "fod",
    "Deformable convolution and RoI pooling on photographs of debris (FOD-A), narrow networks from scratch, in percent",
    (
        *_fod("faster_rcnn", "Faster R-CNN", [_DCONV, _DPOOL, ("dcn", "both")]),
        Row("Faster R-CNN of torchvision", "fod/faster_rcnn", baseline="Faster R-CNN", peer=True),
        *_fod("rfcn", "R-FCN", [_DCONV, _DPOOL, ("dcn", "both")]),
        *_fod("class_aware_rpn", "class-aware RPN", [_DCONV]),
        *_fod("faster_rcnn_fpn", "Faster R-CNN, FPN", [("dcn", "both")]),
    ),
    (
        Column("AP", "AP"),
        Column("AP50", "AP50"),
        Column("AP75", "AP75"),
        Column("S", "APs"),
        Column("M", "APm"),
        Column("L", "APl"),
        Column("parameters (M)", "parameters", 1e-6, 2, spread=False),
        Column("training (CPU min)", "cpu_seconds", 1 / 60, spread=False),
    ),
    "Means over seeds and standard deviations; differences from the plain row with their standard error.",
    seeds=3,
)

TABLES = {table.name: table for table in (TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, FOD)}
