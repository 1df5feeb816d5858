"""Settings that every run has, whatever its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Literal, TypeVar

from pydantic import Field, PrivateAttr, model_validator

from dcn_det.config.data import LoadingConfig
from dcn_det.config.model import ModelConfig
from dcn_det.config.section import Section, wrong
from dcn_det.config.testing import ExpectedConfig, RunTestConfig
from dcn_det.config.train import TrainConfig
from dcn_det.errors import did_you_mean

C = TypeVar("C", bound="RunConfig")

VERSION = 2

MODULE_NAME = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"


class RunConfig(Section):
    """Keys of the settings of every task; each task has its own sections of model, data and testing."""

    version: Literal[2] = 2
    """Version of the schema."""
    imports: tuple[Annotated[str, Field(pattern=MODULE_NAME)], ...] = ()
    """Modules that register backbones, detectors or data formats, on Python's path, in the folder of the config or in
    the working directory. Imported before other settings are read; added to the imports of bases."""
    name: str = ""
    """Name of the experiment; runs are written to ``runs/<name>``. Default: name of the file."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all random numbers: initialization, order of images, augmentation, sampling."""
    device: Literal["auto", "cpu", "cuda"] | Annotated[str, Field(pattern="^cuda:[0-9]+$")] = "auto"
    """``auto``: CUDA if available, otherwise the CPU; ``cuda:N``: the N-th GPU, from 0."""
    model: ModelConfig
    data: LoadingConfig
    train: TrainConfig = TrainConfig()
    test: RunTestConfig = RunTestConfig()
    expected: tuple[ExpectedConfig, ...] = ()
    """Published or measured results of this config."""

    _origins: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @property
    def origins(self) -> Mapping[str, str]:
        """Origin of each value by dotted key: ``FILE:LINE``, ``override`` or ``default``.

        A list of plain values is one value. Empty for configs created in Python.
        """
        return self._origins

    def with_origins(self: C, origins: Mapping[str, str]) -> C:
        """Returns the same settings with other origins."""
        config = self.model_copy()
        config._origins = dict(origins)
        return config

    def __eq__(self, other: object) -> bool:
        """Returns whether all settings are equal, regardless of their origins."""
        return type(self) is type(other) and self.__dict__ == other.__dict__

    @model_validator(mode="after")
    def _check_run(self: C) -> C:
        if problems := self.problems():
            raise wrong(problems)
        return self

    def problems(self) -> dict[tuple[str | int, ...], str]:
        """Returns what is wrong with values that depend on others, by their paths."""
        if self.name and (
            not (parts := PurePath(self.name).parts) or ".." in parts or PurePath(self.name).is_absolute()
        ):
            return {("name",): f"'{self.name}' leaves the folder runs; give a name or a relative path without '..'"}
        return {}


def metric_problems(
    best: str, measured: Sequence[str] | None, kind: str, expected: Sequence[ExpectedConfig], known: Sequence[str]
) -> dict[tuple[str | int, ...], str]:
    """Returns what is wrong with the names of metrics, by their paths.

    Args:
        best: ``train.best_metric``.
        measured: metrics of the data; None if they have no test split, when any known metric will do.
        kind: of the data.
        expected: results; they may be expected on other data than those that overrides select.
        known: metrics of all data of the task.
    """

    def not_among(metric: str, names: Sequence[str], where: str) -> str:
        return f"{metric} is not measured {where}; allowed: {', '.join(names)}{did_you_mean(metric, names)}"

    problems: dict[tuple[str | int, ...], str] = {}
    allowed = known if measured is None else measured
    if best not in allowed:
        problems["train", "best_metric"] = not_among(
            best, allowed, "on any data" if measured is None else f"on {kind} data"
        )
    for index, item in enumerate(expected):
        if item.metric not in known:
            problems["expected", index, "metric"] = not_among(item.metric, known, "on any data")
    return problems
