"""Every setting there is: type, unit, default and meaning.

Values are frozen and unknown keys are refused. Defaults are the paper's recipe for ResNet-101 on COCO (Dai et
al., ICCV 2017) and, where the paper is silent, the authors' released code.

Rules between keys live here too, each in the block that holds all of its keys. What depends on more than the
settings (names of residual blocks, categories of a data set) is checked where that is known.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dcn_det.config.data import DataConfig
from dcn_det.config.model import FasterRCNNConfig, ModelConfig
from dcn_det.config.section import Section
from dcn_det.config.testing import EvaluationConfig, ExpectedConfig, TestConfig
from dcn_det.config.train import TrainConfig


class Config(Section):
    """All settings of a run: model, data, training, testing and evaluation."""

    version: Literal[1] = 1
    name: str = ""
    """Taken from the file name when empty."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["auto", "cpu", "cuda"] | Annotated[str, Field(pattern="^cuda:[0-9]+$")] = "auto"
    """``auto`` takes a CUDA device when there is one; ``cuda:N`` is the N-th, from 0."""
    model: Annotated[ModelConfig, Field(discriminator="kind")] = FasterRCNNConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    test: TestConfig = TestConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    expected: tuple[ExpectedConfig, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Config:
        voc = self.data.kind == "voc"
        if self.data.test is not None and self.train.best_metric.startswith("mAP") != voc:
            measured = "mAP50 or mAP70" if voc else "COCO's metrics, such as AP"
            raise ValueError(
                f"train.best_metric {self.train.best_metric} is not measured on {self.data.kind} data; "
                f"choose {measured}"
            )
        return self
