import torch

from dcn_det.models.preprocess import Preprocess
from dcn_det.structures import ImageInfo

IMAGES = torch.tensor([[[[10, 20]], [[30, 40]], [[50, 60]]]], dtype=torch.uint8)


def info(width: int) -> ImageInfo:
    return ImageInfo(0, "", 1, width, 1, width)


def test_by_hand() -> None:
    preprocess = Preprocess("rgb", mean=(1, 2, 3), std=(1, 2, 4))
    assert preprocess(IMAGES, [info(2)])[0, :, 0].tolist() == [[9, 19], [14, 19], [11.75, 14.25]]


def test_bgr_reverses_channels_but_not_the_mean() -> None:
    preprocess = Preprocess("bgr", mean=(1, 2, 3), std=(1, 2, 4))
    assert preprocess(IMAGES, [info(2)])[0, :, 0].tolist() == [[11.75, 14.25], [14, 19], [9, 19]]


def test_padding_is_zero_after_subtraction() -> None:
    output = Preprocess()(IMAGES, [info(1)])
    assert output.dtype == torch.float32
    assert (output[..., 1] == 0).all() and (output[..., 0] != 0).all()


def test_a_batch_is_padded_to_a_multiple() -> None:
    plain, padded = Preprocess()(IMAGES, [info(2)]), Preprocess(size_multiple=4)(IMAGES, [info(2)])
    assert plain.shape == (1, 3, 1, 2) and padded.shape == (1, 3, 4, 4)
    assert torch.equal(padded[..., :1, :2], plain) and padded.count_nonzero() == plain.count_nonzero()
    assert Preprocess(size_multiple=2)(IMAGES, [info(2)]).shape == (1, 3, 2, 2)


def test_it_has_no_place_in_checkpoints() -> None:
    assert Preprocess().state_dict() == {}
