"""Steps of a table as data: which commands give its rows, from which files, to which files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dcn_det.config import RunConfig, load_any, to_plain
from dcn_det.config.data import SplitConfig
from dcn_det.config.shipped import configs_folder
from dcn_det.errors import UserError
from dcn_det.reproduce.tables import Row, Table

Schedule = Literal["released", "paper"]
Weights = Literal["train", "authors"]

RELEASED_WEIGHTS = Path("weights")
"""Folder of the authors' released weights."""
AIR_WEIGHTS = "dcn-det train configs/imagenet/air.yaml"
AUTHORS_FILE = "dcn-det download weights --dry-run prints the folder from which to download it in a browser"
_IRRELEVANT = {
    "data": ("root", "workers", "timeout", "cache", "cache_folder"),
    "train": ("log_every", "checkpoint_every", "keep_checkpoints", "eval_every", "eval_unit", "wandb"),
}
"""Settings that do not change results, by section."""


@dataclass(frozen=True)
class Options:
    """What to reproduce, and where.

    Attributes:
        table: the table.
        output: folder of all files; tables share it, and a training that two of them need is done once.
        schedule: that of the authors' released code (the default of the configs), or that of the paper.
        weights: trained here, or released by the authors.
        data: folder of the data set (``data.root``); None for that of the configs.
        smoke: use small networks on the sample set, see :mod:`dcn_det.reproduce.smoke`.
        seeds: number of trainings of each row, with the seed of the config and those after it.
        overrides: settings laid over every config.
        rows: rows that the settings must fit; all of them by default. Others have no steps where they do not.
    """

    table: Table
    output: Path
    schedule: Schedule = "released"
    weights: Weights = "train"
    data: Path | None = None
    smoke: bool = False
    seeds: int = 1
    overrides: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Step:
    """A command that makes files from files.

    Attributes:
        name: ``train/``, ``convert/``, ``test/``, ``dilation/``, ``time/`` or ``peer/`` and the config, with the number
            of the seed unless it is 0.
        command: arguments of ``dcn-det``.
        config: the settings of the command.
        inputs: files and folders that must exist, each with the command that gets it; empty for those of other steps.
        output: the file that exists afterwards. Its folder belongs to the step.
        after: names of the steps that make inputs.
        parallel: whether a launcher may run it in several processes.
        hash: of the settings that determine the result.
        key: of these settings, and of those of the steps before.
    """

    name: str
    command: tuple[str, ...]
    config: RunConfig
    inputs: Mapping[Path, str]
    output: Path
    parallel: bool
    hash: str
    key: str
    after: tuple[str, ...] = ()

    @property
    def missing(self) -> dict[Path, str]:
        """The inputs that no other step makes and that do not exist."""
        return {path: how for path, how in self.inputs.items() if how and not path.exists()}


@dataclass(frozen=True)
class PlannedRow:
    """A row with its steps.

    Attributes:
        row: the row.
        config: of the test, with the first seed; None without steps.
        chains: the steps of each seed; the last one of each gives the result.
        absent: why there are no steps; empty if there are.
    """

    row: Row
    config: RunConfig | None = None
    chains: tuple[tuple[Step, ...], ...] = ()
    absent: str = ""

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of all seeds."""
        return tuple(step for chain in self.chains for step in chain)


@dataclass
class Graph:
    """The rows of a table and the steps that measure them, in an order in which they can run."""

    table: Table
    rows: list[PlannedRow] = field(default_factory=list)
    steps: dict[str, Step] = field(default_factory=dict)

    def select(self, rows: Sequence[Row]) -> list[Step]:
        """Returns the steps of some rows, in order and each once."""
        names = {step.name for each in self.rows if each.row in rows for step in each.steps}
        return [step for name, step in self.steps.items() if name in names]


def build_graph(options: Options) -> Graph:
    """Returns rows and steps of a table.

    Raises:
        UserError: a setting is wrong, or the project's configs are not found.
    """
    released = released_files() if options.weights == "authors" else {}
    steps: dict[str, Step] = {}
    chains: dict[Row, list[tuple[Step, ...]]] = {row: [] for row in options.table.rows}
    absent: dict[Row, str] = {}
    for seed in range(options.seeds):  # seed by seed: every row has a result as soon as possible
        for row in chains:
            absent |= _absence(row, released, options)
            if row in absent:
                continue
            try:
                chain = _chain(row, released.get(row.config, ""), options, seed)
            except UserError as error:
                if not options.rows or row in options.rows:
                    raise
                absent[row] = f"other settings: {error}"
                continue
            # steps that rows share are one
            chains[row].append(tuple(steps.setdefault(step.name, step) for step in chain))
    planned = [
        PlannedRow(row, absent=absent[row]) if row in absent else PlannedRow(row, found[0][-1].config, tuple(found))
        for row, found in chains.items()
    ]
    return Graph(options.table, planned, steps)


def _absence(row: Row, released: Mapping[str, str], options: Options) -> dict[Row, str]:
    """Returns why a row has no steps, by the row; empty if it has some."""
    if not row.config:
        return {row: "not in this project"}
    return {row: "not released"} if options.weights == "authors" and row.config not in released else {}


def _chain(row: Row, released: str, options: Options, seed: int) -> tuple[Step, ...]:
    """Returns the steps of a row with the ``seed``-th seed."""
    if options.table.timed:
        return (_timed(row, options),)
    if row.peer:
        return (_peer(row, options, seed),)
    weights = _converted(row, released, options) if released else _trained(row, options, seed)
    return weights, _dilation(row, weights, options) if row.layer else _tested(row, weights, options, seed)


def _settings(name: str, options: Options, seed: int = 0) -> tuple[Path, list[str]]:
    """Returns the file of a config and the overrides for it, with the ``seed``-th seed."""
    folder = configs_folder()
    path, overrides = folder / f"{name}.yaml", []
    if options.schedule == "paper":
        own = folder / "base" / f"schedule_paper_{load_any(path).data.kind}.yaml"
        overrides.append(f"overlay={own if own.is_file() else folder / 'base' / 'schedule_paper.yaml'}")
    if options.data is not None:
        overrides.append(f"data.root={options.data}")
    if options.smoke:
        from dcn_det.reproduce import smoke

        overrides += smoke.overrides(load_any(path), options.output / "data", options.data is not None)
    overrides += options.overrides
    if seed:
        overrides.append(f"seed={load_any(path, *overrides).seed + seed}")
    return path, overrides


def _place(kind: str, config: str, seed: int = 0) -> str:
    """Returns the name of a step, which is also its folder."""
    return f"{kind}/{config}.seed{seed}" if seed else f"{kind}/{config}"


def _trained(row: Row, options: Options, seed: int) -> Step:
    path, overrides = _settings(row.training, options, seed)
    overrides.append("data.test=null")  # testing is a step of its own
    config = load_any(path, *overrides)
    name = _place("train", row.training, seed)
    output = options.output / name / "last.pth"
    hashed = _hash(_relevant(config, "seed", "imports", "model", "data", "train"))
    return Step(
        name=name,
        command=("train", str(path), *overrides, "--output", str(output.parent), "--auto-resume"),
        config=config,
        inputs=data_files(config, "train", row.training) | _backbone_file(config),
        output=output,
        parallel=True,
        hash=hashed,
        key=hashed,
    )


def released_files() -> dict[str, str]:
    """Returns the name of the file of the authors' released weights by config."""
    from dcn_det.weights.released import FILES  # imports PyTorch, which plans do without

    return {config: file for file, config in FILES.items()}


def _converted(row: Row, file: str, options: Options) -> Step:
    path, overrides = _settings(row.config, options)
    source = RELEASED_WEIGHTS / file
    output = options.output / "convert" / row.config / "weights.safetensors"
    config = load_any(path, *overrides)
    hashed = _hash(_relevant(config, "imports", "model"))
    return Step(
        name=f"convert/{row.config}",
        command=("convert-weights", str(source), str(output), "--config", str(path), *overrides),
        config=config,
        inputs={source: AUTHORS_FILE},
        output=output,
        parallel=False,
        hash=hashed,
        key=hashed,
    )


def _tested(row: Row, weights: Step, options: Options, seed: int) -> Step:
    path, overrides = _settings(row.config, options)
    config = load_any(path, *overrides)
    name = _place("test", row.config, seed)
    folder = options.output / name
    command = ("test", str(path), *overrides, "--weights", str(weights.output), "--output", str(folder))
    output = folder / "metrics.json"
    if not annotated(config):
        method = row.config.partition("/")[2].replace("_", "-")
        command = (*command, "--submission", method)
        output = folder / f"detections_test-dev2017_{method}_results.zip"
    hashed = _hash(_relevant(config, "imports", "model", "data", "test", "evaluation"))
    return Step(
        name=name,
        command=command,
        config=config,
        inputs=data_files(config, "test", row.config) | {weights.output: ""},
        output=output,
        parallel=True,
        hash=hashed,
        key=_hash([hashed, weights.key]),
        after=(weights.name,),
    )


def _peer(row: Row, options: Options, seed: int) -> Step:
    path, overrides = _settings(row.config, options, seed)
    config = load_any(path, *overrides)
    name = _place("peer", row.config, seed)
    output = options.output / name / "peer.json"
    hashed = _hash(_relevant(config, "seed", "imports", "model", "data", "train", "test", "evaluation", both=True))
    return Step(
        name=name,
        command=("benchmark", "peer", str(path), *overrides, "--only", "torchvision", "--save", str(output)),
        config=config,
        inputs=data_files(config, "train", row.config) | data_files(config, "test", row.config),
        output=output,
        parallel=False,
        hash=hashed,
        key=hashed,
    )


def _dilation(row: Row, weights: Step, options: Options) -> Step:
    path, overrides = _settings(row.config, options)
    config = load_any(path, *overrides)
    output = options.output / "dilation" / row.config / "dilation.json"
    hashed = _hash(_relevant(config, "imports", "model", "data", "test"))
    return Step(
        name=f"dilation/{row.config}",
        command=(
            *("effective-dilation", str(path), *overrides, "--weights", str(weights.output)),
            *("--save", str(output), "--plot", str(output.with_suffix(".png"))),
        ),
        config=config,
        inputs=data_files(config, "test", row.config) | {weights.output: ""},
        output=output,
        parallel=False,
        hash=hashed,
        key=_hash([hashed, weights.key]),
        after=(weights.name,),
    )


def _timed(row: Row, options: Options) -> Step:
    path, overrides = _settings(row.config, options)
    config = load_any(path, *overrides)
    output = options.output / "time" / row.config / "benchmark.json"
    sides = [str(each) for each in config.data.input_size]
    hashed = _hash([_relevant(config, "imports", "model", "test"), sides])
    classes = config.data.num_classes
    how = ["--stages", "network", "testing", "--classes", str(classes)]
    how += ["--rounds", "1", "--seconds", "0.01"] if options.smoke else []
    return Step(
        name=f"time/{row.config}",
        command=("benchmark", "detector", str(path), *overrides, *how, "--size", *sides, "--save", str(output)),
        config=config,
        inputs={},
        output=output,
        parallel=False,
        hash=hashed,
        key=hashed,
    )


def annotated(config: RunConfig) -> bool:
    """Returns whether the test split has annotations, by the name that COCO gives to files without."""
    data: Any = config.data
    files = getattr(data.test, "annotations", "")
    return not any(Path(file).name.startswith("image_info") for file in _listed(files))


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def data_files(config: RunConfig, split: Literal["train", "test"], name: str) -> dict[Path, str]:
    """Returns files and folders of a split of a config, such as ``coco/rfcn_air``, with the command that gets them."""
    data: Any = config.data
    section: SplitConfig | None = getattr(data, split)
    if section is None or data.kind.startswith("sample"):
        return {}
    root = Path(data.root)
    place = root.parent if data.kind == "voc" and root.name == "VOCdevkit" else root
    how = f"dcn-det download {name.partition('/')[0]} --to {place}"
    if data.kind not in ("coco", "voc"):
        how = f"datasets/README.md says how to get {place}"
    return {root / path: how for path in section.paths}


def _backbone_file(config: RunConfig) -> dict[Path, str]:
    """Returns the file of pretrained weights, if the config names one."""
    backbone = config.model.backbone
    if backbone.weights in ("none", "torchvision"):
        return {}
    how = AIR_WEIGHTS if backbone.kind == "aligned_inception_resnet" else "put your file there"
    return {Path(backbone.weights): how}


def _relevant(config: RunConfig, *sections: str, both: bool = False) -> dict[str, Any]:
    """Returns the settings of some sections that a result depends on; ``both``: on both splits."""
    plain = to_plain(config)
    kept = {section: plain[section] for section in sections if section in plain}
    for section, keys in _IRRELEVANT.items():
        if section in kept:
            kept[section] = {key: value for key, value in kept[section].items() if key not in keys}
    if both:
        return kept
    if "train" in sections:
        kept["data"].pop("test")
    else:
        kept.get("data", {}).pop("train", None)
    return kept


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def trainings(steps: Sequence[Step]) -> Iterator[Step]:
    """Yields the steps that train."""
    return (step for step in steps if step.name.startswith("train/"))
