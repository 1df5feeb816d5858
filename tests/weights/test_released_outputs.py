"""From the authors' parameter files through the command to the numbers that Apache MXNet computed with them."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcn_det.cli.convert_weights import main
from dcn_det.engine.testing import load
from dcn_det.models.boxes import to_rois
from dcn_det.models.rpn import RPNOutput
from dcn_det.structures import Batch, ImageInfo
from tests.weights.mxnet_writer import write_params
from tests.weights.small_released import CONFIGS, NETWORKS, path_of

pytestmark = [pytest.mark.shared, pytest.mark.slow]


def given_weights(folder: Path, name: str) -> dict[str, np.ndarray]:
    spec = importlib.util.spec_from_file_location("given_weights", folder / "weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.weights(folder / f"{name}.json")


@pytest.mark.parametrize("name", NETWORKS)
def test_same_numbers(name: str, shared: Path, tmp_path: Path) -> None:
    folder = shared / "networks"
    source, target = tmp_path / f"{name}_coco-0000.params", tmp_path / f"{name}_coco.safetensors"
    write_params(source, given_weights(folder, name), "legacy")
    assert main([str(source), str(target), "--config", str(path_of(CONFIGS[name]))]) == 0
    source.unlink()
    predictor = load(target, device="cpu")
    target.unlink()

    model: Any = predictor.model
    expected = {key: torch.from_numpy(value) for key, value in np.load(folder / f"{name}.npz").items()}
    pixels = expected["image"].permute(2, 0, 1).flip(0)[None].contiguous()
    height, width = pixels.shape[2:]
    infos = [ImageInfo(0, "", height, width, height, width)]
    rois = expected["rois"][:, 1:]
    outputs: list[RPNOutput] = []
    model.rpn.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.inference_mode():
        torch.testing.assert_close(model.preprocess(pixels, infos), expected["blob"], atol=1e-5, rtol=0)
        features = model.extract(Batch(pixels, infos))
        logits, deltas = model.head(features.head, [rois + rois.new_tensor([0, 0, 1, 1])])
        (proposals,) = model.propose(features, infos)
    (output,) = outputs
    anchors = output.logits.shape[1] // 2
    probabilities = output.logits.unflatten(1, (2, anchors)).softmax(dim=1).flatten(1, 2)
    torch.testing.assert_close(probabilities, expected["rpn_prob"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.deltas, expected["rpn_bbox"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits.softmax(dim=1), expected["cls_prob"][0], atol=1e-4, rtol=0)
    torch.testing.assert_close(deltas.flatten(1), expected["bbox_pred"][0], atol=1e-4, rtol=0)
    # Nearly equal scores may change places, so the sets are compared, and one proposal may lose to such a neighbour.
    distances = (to_rois([proposals.boxes])[:, None, 1:] - rois[None]).abs().amax(dim=2)
    assert (distances.amin(dim=0) < 1e-2).float().mean() > 0.99
    assert (distances.amin(dim=1) < 1e-2).float().mean() > 0.99

    photo = expected["image"].flip(2).numpy()
    assert predictor.names[:2] == ["person", "bicycle"] and len(predictor.names) == 80
    assert len(predictor(np.ascontiguousarray(photo)).boxes) > 0
