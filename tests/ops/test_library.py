"""Loading the compiled operators, and working without them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dcn_det
from dcn_det.ops import library
from dcn_det.ops.schemas import SCHEMAS

PACKAGE = Path(dcn_det.__file__).parent
COMPILED = library.status()["cpu"].loaded

# Reports the state of a new interpreter; an operator's result is compared with that of this process.
REPORT = """
import json, sys, warnings
import torch
before = set(sys.modules)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from dcn_det.ops import deform_conv2d, library
added = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
input = torch.linspace(-1, 1, 2 * 4 * 5).reshape(1, 2, 4, 5).requires_grad_()
offset = torch.linspace(-2, 2, 8 * 3 * 4).reshape(1, 8, 3, 4).requires_grad_()
weight = torch.linspace(-1, 1, 2 * 3 * 4).reshape(3, 2, 2, 2).requires_grad_()
output = deform_conv2d(input, offset, weight)
grads = torch.autograd.grad(output.square().sum(), [input, offset, weight])
print(json.dumps({
    "file": library.__file__,
    "tier": library.tier("deform_conv2d", "cpu"),
    "reason": library.status()["cpu"].reason,
    "warnings": [str(w.message) for w in caught if "dcn_det" in str(w.message)],
    "modules": [name for name in sys.modules if name.startswith("dcn_det")],
    "added": sorted(added),
    "schemas": {n: str(getattr(torch.ops.dcn_det, n).default._schema) for n in library.SCHEMAS},
    "values": [value.double().sum().item() for value in (output, *grads)],
    "status": str(library.status()),
    "instruction_set": library.instruction_set(),
}))
"""


def report(folder: Path, **environment: str) -> dict:
    """Runs REPORT with the package in ``folder``."""
    command = [sys.executable, "-c", REPORT]
    variables = {k: v for k, v in os.environ.items() if k not in (library.TIER_VARIABLE, library.CPU_VARIABLE)}
    result = subprocess.run(
        command,
        cwd=folder,
        env={**variables, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert Path(found["file"]).is_relative_to(folder)
    return found


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the operators and their compiled libraries, without the rest of the package."""
    target = tmp_path / "dcn_det"
    target.mkdir()
    shutil.copy(PACKAGE / "__init__.py", target)
    shutil.copytree(PACKAGE / "ops", target / "ops", ignore=shutil.ignore_patterns("csrc", "__pycache__"))
    return tmp_path


@pytest.fixture(scope="module")
def usual() -> dict:
    return report(PACKAGE.parent)


def assert_plain(found: dict, usual: dict) -> None:
    assert found["tier"] == "plain"
    assert found["schemas"] == usual["schemas"]
    assert found["values"] == pytest.approx(usual["values"], rel=1e-5)


def test_import_is_light(usual):
    own = {name.split(".")[1] for name in usual["modules"] if "." in name}
    assert own == {"ops"}
    assert usual["added"] == ["dcn_det"]  # torch imports everything else


def test_compiled_tier(usual):
    if not COMPILED:
        pytest.skip(f"no compiled library: {library.status()['cpu'].reason}")
    assert usual["tier"] == "cpu" and usual["warnings"] == [] and usual["reason"] == ""


def test_schemas_agree_with_the_compiled_ones():
    if not COMPILED:
        pytest.skip(f"no compiled library: {library.status()['cpu'].reason}")
    for name, schema in SCHEMAS.items():
        assert str(getattr(torch.ops.dcn_det, name).default._schema) == f"dcn_det::{name}{schema}"


def test_plain_tier_by_environment(usual):
    found = report(PACKAGE.parent, DCN_DET_TIER="plain")
    assert_plain(found, usual)
    assert found["warnings"] == [] and found["reason"] == "DCN_DET_TIER=plain in the environment"


def test_unknown_tier_in_the_environment_is_an_error(copy):
    with pytest.raises(AssertionError, match="DCN_DET_TIER is 'fast'; expected 'plain' or nothing"):
        report(copy, DCN_DET_TIER="fast")


def test_unknown_instruction_set_in_the_environment_is_an_error(copy):
    with pytest.raises(AssertionError, match="DCN_DET_CPU is 'sse'; expected one of baseline, avx2, avx512"):
        report(copy, DCN_DET_CPU="sse")


@pytest.mark.skipif(not COMPILED, reason="no compiled library")
@pytest.mark.parametrize("name", library.INSTRUCTION_SETS)
def test_instruction_set_by_environment(usual, name):
    """Every instruction set passes the golden tests; sets that this CPU lacks are refused."""
    best = library.INSTRUCTION_SETS.index(usual["instruction_set"])
    if library.INSTRUCTION_SETS.index(name) > best:
        with pytest.raises(AssertionError, match=f"DCN_DET_CPU is '{name}'; .* '{usual['instruction_set']}'"):
            report(PACKAGE.parent, DCN_DET_CPU=name)
        return
    assert report(PACKAGE.parent, DCN_DET_CPU=name)["instruction_set"] == name
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cpu and (golden or nms)"]
    command.append(str(Path(__file__).parent))
    done = subprocess.run(command, env={**os.environ, "DCN_DET_CPU": name}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


def missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def truncated(path: Path) -> None:
    content = (PACKAGE / "ops" / path.name).read_bytes() if COMPILED else b"\x7fELF\x02" + bytes(59) + bytes(100)
    path.write_bytes(content[: len(content) * 2 // 3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    schemas = "".join(name + schema for name, schema in SCHEMAS.items())
    path.write_text(f"version https://git-lfs.github.com/spec/v1 {schemas}")


def of_another_version(path: Path) -> None:
    content = path.read_bytes() if path.exists() else b""
    path.write_bytes(content.replace(b"Tensor? bias", b"Tensor? BIAS"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (missing, "does not exist"),
        (truncated, "is truncated"),
        (empty, "another version"),
        (text, "cannot be loaded"),
        (of_another_version, "another version"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_unusable_library_costs_one_warning(copy, usual, damage, reason):
    damage(copy / "dcn_det" / "ops" / "_C.abi3.so")
    found = report(copy)
    assert_plain(found, usual)
    assert reason in found["reason"]
    (warning,) = found["warnings"]
    assert found["reason"] in warning and "CPU" in warning and "python setup.py build_ext --inplace" in warning


def test_tier_of_an_unknown_operator():
    with pytest.raises(ValueError, match=r"unknown operator 'deform_conv'; expected one of deform_conv2d, "):
        library.tier("deform_conv", "cpu")


def test_tier_of_a_device_without_kernels():
    assert library.tier("deform_conv2d", "mps") == "plain"


def test_status_names_the_files():
    for state in library.status().values():
        assert state.loaded == (state.reason == "")
        assert not state.loaded or (state.path is not None and state.path.is_file())
