"""Hostile files of weights, and what may become of them."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from dcn_det.config import load_config, to_plain
from dcn_det.errors import UserError
from dcn_det.models.build import build_detector
from dcn_det.structures import Category
from dcn_det.weights import checkpoint
from tests.conftest import TINY

ARRAYS = {"conv1_w": np.arange(48, dtype=np.float32).reshape(4, 3, 2, 2), "res_conv1_bn_s": np.ones(4, np.float32)}
TENSORS = {name: torch.from_numpy(value) for name, value in ARRAYS.items()}
CATEGORIES = (Category(1, "cat"), Category(7, "dog"))
MiB = 2**20


def small_state(folder: Path) -> dict[str, Any]:
    """Content of the checkpoint of a small detector."""
    model = TINY["model"] | {"backbone": TINY["model"]["backbone"] | {"width": 4, "stem_width": 4}}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(TINY | {"model": model}))
    config = load_config(path)
    torch.manual_seed(0)
    return {
        "config": to_plain(config),
        "categories": checkpoint.categories_to_plain(CATEGORIES),
        "model": build_detector(config, len(CATEGORIES)).state_dict(),
        "iteration": 4,
    }


def equal(found: Any) -> bool:
    """Whether tensors or arrays by name are those of ``ARRAYS``."""
    return found.keys() == ARRAYS.keys() and all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def one_line(error: Exception) -> None:
    """The message is one short line for a terminal, without torch's advice to load unsafely."""
    said = str(error)
    assert said.isprintable() and len(said) < 1000, said
    assert "weights_only" not in said and "trust" not in said


def attempt(act: Callable[[], Any]) -> Any:
    """Returns the result, or None if a UserError says on one line what is wrong."""
    try:
        return act()
    except UserError as error:
        # Settings that are wrong, and tensors that do not fit the network, are listed.
        for line in str(error).splitlines():
            one_line(UserError(line))
        assert len(str(error).splitlines()) < 20
        return None


DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
CONTROL = "a\nb\x1b[31m"
NAMES = (0, "", "x" * 5000, CONTROL, ("t",))
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 2**70, float("nan"), "x", CONTROL, [], {}, [None], {"a": 1}, {3: "b"}, DEEP),
    *(torch.zeros(3), torch.full((2,), float("nan")), torch.zeros(2, dtype=torch.int8), torch.zeros(()), [[], {}]),
    *(torch.zeros(1).expand(2**40), torch.zeros(3, device="meta"), torch.zeros(2, 2).to_sparse(), 1 + 2j),
)
"""What stands where something else is expected."""
TAME = tuple(value for value in VALUES if not (isinstance(value, int | str) and value in (2**70, CONTROL)))
"""Without what builds huge networks, and settings with control characters, which are shown as they are."""


def mutate(content: Any, draw: random.Random, values: tuple[Any, ...]) -> Any:
    """Replaces, removes, renames or swaps a part of nested containers, at any depth; returns a copy."""
    if not isinstance(content, dict | list) or not content or draw.random() < 0.15:
        return draw.choice(values)
    copy = dict(content) if isinstance(content, dict) else list(content)
    keys = list(copy) if isinstance(copy, dict) else list(range(len(copy)))
    key, other = draw.choice(keys), draw.choice(keys)
    action = draw.random()
    if action < 0.2:
        del copy[key]
    elif action < 0.3:
        copy[key], copy[other] = copy[other], copy[key]
    elif action < 0.45 and isinstance(copy, dict):
        copy[draw.choice(NAMES)] = copy.pop(key)
    else:
        copy[key] = mutate(copy[key], draw, values)
    return copy


def write_if_possible(path: Path, content: Any) -> bool:
    """Writes any content like a checkpoint; False if the format cannot hold it."""
    try:
        if isinstance(content, dict) and isinstance(content.get("model", {}), dict):
            checkpoint.save(path, content)
        else:
            torch.save(content, path)
    except Exception:
        return False
    return True
