"""``dcn-det sampling`` from a checkpoint to pictures and a page."""

from pathlib import Path

import pytest

from dcn_det.cli.sampling import main
from dcn_det.config import load_config
from dcn_det.errors import UserError
from dcn_det.images import read_image
from dcn_det.weights import checkpoint
from tests.cli.test_settings_of_weights import random_weights


@pytest.fixture
def weights(tiny: Path, tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "w.pth", random_weights(load_config(tiny)))
    return tmp_path / "w.pth"


@pytest.fixture
def photo(sample_root: Path) -> Path:
    return sorted((sample_root / "val").iterdir())[0]


def test_pictures_and_page(weights: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    arguments = [str(photo), f"--weights={weights}", f"--output={folder}", "--score=0"]
    assert main([*arguments, "--at=10,20", "--at", "30.5,40", "--parts=3"]) == 0
    assert {path.name for path in folder.iterdir()} == {"sampling.png", "offsets.png", "parts.png", "sampling.html"}
    side = 640
    assert read_image(folder / "sampling.png").shape[1] == 2 * side + 12, "two points"
    assert read_image(folder / "offsets.png").shape[1] == side + 8, "one layer"
    page = (folder / "sampling.html").read_text()
    assert "#10.0,20.0" in page and "#30.5,40.0" in page and photo.name in page
    assert main(arguments) == 0
    assert "#10.0,20.0" not in (folder / "sampling.html").read_text()


def test_without_detections(weights: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(photo), f"--weights={weights}", f"--output={tmp_path / 'out'}", "--score=2"]) == 0
    assert not (tmp_path / "out" / "parts.png").exists()
    assert "parts.png" in capsys.readouterr().out.splitlines()[0]
    assert "background" in (tmp_path / "out" / "sampling.html").read_text()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (("model.backbone.deform.blocks=[]",), {"parts.png", "sampling.html"}),
        (("model.head.pooling=bilinear",), {"sampling.png", "offsets.png", "sampling.html"}),
    ],
)
def test_detectors_of_which_one_part_deforms(
    tiny: Path, photo: Path, tmp_path: Path, settings: tuple[str, ...], names: set[str]
) -> None:
    checkpoint.save(tmp_path / "w.pth", random_weights(load_config(tiny, *settings)))
    folder = tmp_path / "out"
    assert main([str(photo), f"--weights={tmp_path / 'w.pth'}", f"--output={folder}", "--score=0"]) == 0
    assert {path.name for path in folder.iterdir()} == names


def test_several_views_and_half_precision(tiny: Path, photo: Path, tmp_path: Path) -> None:
    settings = (
        "test={flip: true, scales: [{short_side: 64, max_side: 64}, {short_side: 96, max_side: 96}]}",
        "test.precision=bfloat16",
        "model.backbone.deform.kind=v2",
    )
    checkpoint.save(tmp_path / "w.pth", random_weights(load_config(tiny, *settings)))
    assert main([str(photo), f"--weights={tmp_path / 'w.pth'}", f"--output={tmp_path / 'out'}", "--score=0"]) == 0
    assert (tmp_path / "out" / "sampling.png").exists()


def test_what_cannot_be_drawn_is_refused(tiny: Path, weights: Path, photo: Path, tmp_path: Path) -> None:
    common = [f"--weights={weights}", f"--output={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=r"--at: 1000,5 .*256x256"):
        main([str(photo), *common, "--at=1000,5"])
    with pytest.raises(UserError, match=r"nothing\.jpg"):
        main([str(tmp_path / "nothing.jpg"), *common])
    with pytest.raises(UserError, match=r"--output"):
        main([str(photo), f"--weights={weights}", f"--output={weights}"])
    for point in ("5", "a,b", "1,2,3", "nan,1"):
        with pytest.raises(SystemExit) as stop:
            main([str(photo), *common, f"--at={point}"])
        assert stop.value.code == 2

    plain = load_config(tiny, "model.backbone.deform.blocks=[]", "model.head.pooling=align")
    checkpoint.save(tmp_path / "plain.pth", random_weights(plain))
    with pytest.raises(UserError, match=r"no deformable layer"):
        main([str(photo), f"--weights={tmp_path / 'plain.pth'}", f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()
