import numpy as np
import pytest
import torch
from torch import Tensor

from dcn_det.config import Config
from dcn_det.distributed import resolve_device
from dcn_det.errors import UserError
from dcn_det.inference.build import build_predictor, build_views
from dcn_det.inference.predictor import Predictor, View, to_original
from dcn_det.models.postprocess import PostProcess
from dcn_det.structures import Batch, Detections, ImageInfo
from tests.inference.detectors import CATEGORIES, Brightest, tiny_detector


def predictor(short: int, cap: int) -> Predictor:
    return Predictor(Brightest(), CATEGORIES, [View(short, cap)], torch.device("cpu"))


def scene(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


@pytest.mark.parametrize(("short", "cap"), [(200, 400), (100, 120), (50, 1000), (400, 640)])
def test_boxes_come_back_in_pixels_of_the_original(short: int, cap: int) -> None:
    found = predictor(short, cap)(scene(200, 300, (40, 60, 160, 120)))
    torch.testing.assert_close(found.boxes, Tensor([[40, 60, 160, 120]]), atol=3, rtol=0)


def test_the_predictor_evaluates_and_leaves_the_mode_as_it_was() -> None:
    one = predictor(100, 100)
    one.model.train()
    one(scene(100, 100, (1, 2, 30, 40)))
    assert isinstance(one.model, Brightest) and one.model.modes == [False]
    assert one.model.training


def test_a_mirrored_input_is_mirrored_back() -> None:
    info = ImageInfo(1, "", height=100, width=200, input_height=50, input_width=100, flipped=True)
    boxes = torch.tensor([[10.0, 5.0, 30.0, 20.0]])
    original = to_original(Detections(boxes, torch.ones(1), torch.zeros(1)), info)
    assert original.boxes.tolist() == [[140.0, 10.0, 180.0, 40.0]]


def test_boxes_are_clipped_to_the_original() -> None:
    info = ImageInfo(1, "", height=99, width=201, input_height=50, input_width=100)
    boxes = torch.tensor([[-5.0, -5.0, 300.0, 300.0]])
    assert to_original(Detections(boxes, torch.ones(1), torch.zeros(1)), info).boxes.tolist() == [[0, 0, 201, 99]]


def released_boxes(inclusive: np.ndarray, width: int, height: int, scale: float) -> np.ndarray:
    """The formula of the authors' released code: clip inclusive corners to the input, divide them by the scale.

    Returns half-open boxes; the width in COCO results is x2 - x1 + 1 for inclusive corners.
    """
    limit = np.array([width - 1, height - 1, width - 1, height - 1])
    return np.clip(inclusive, 0, limit) / scale + np.array([0, 0, 1, 1])


SCALES = (0.5, 1.5, 2.25)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_inclusive_corners_are_divided_as_in_the_released_code(scale: float, flipped: bool) -> None:
    width, height = int(400 * scale), int(240 * scale)
    generator = np.random.default_rng(0)
    first = generator.uniform(-20, (width - 2, height - 2), (50, 2))
    inclusive = np.concatenate((first, first.clip(0) + generator.uniform(1, height / 2, (50, 2))), axis=1)
    shown = inclusive.copy()
    if flipped:  # the last pixel of a mirrored image is the first
        shown[:, [0, 2]] = width - 1 - inclusive[:, [2, 0]]
    info = ImageInfo(1, "", height=240, width=400, input_height=height, input_width=width, flipped=flipped)
    boxes = torch.from_numpy(shown + [0, 0, 1, 1]).float()
    found = to_original(Detections(boxes, torch.ones(50), torch.zeros(50)), info, "inclusive").boxes.numpy()
    np.testing.assert_allclose(found, released_boxes(inclusive, width, height, scale), atol=1e-3)
    ordinary = to_original(Detections(boxes, torch.ones(50), torch.zeros(50)), info).boxes
    inside = (inclusive > 0).all(1) & (inclusive[:, 2] < width - 1) & (inclusive[:, 3] < height - 1)
    wider = found[inside, 2:] - ordinary.numpy()[inside, 2:]
    assert inside.sum() > 5 and np.allclose(wider, 1 - 1 / scale, atol=1e-3)


def test_boxes_below_a_pixel_do_not_turn_inside_out() -> None:
    info = ImageInfo(1, "", height=100, width=100, input_height=25, input_width=25)
    boxes = torch.tensor([[3.0, 3.0, 3.5, 3.25], [0.0, 0.0, 0.0, 0.0]])
    found = to_original(Detections(boxes, torch.ones(2), torch.zeros(2)), info, "inclusive").boxes
    assert found.tolist() == [[12, 12, 12, 12], [0, 0, 0, 0]]


def test_the_corners_of_a_config_reach_every_view(monkeypatch: pytest.MonkeyPatch) -> None:
    image, model = noise(96, 112), tiny_detector()
    plain = settings(scales=[{"short_side": side, "max_side": 400} for side in (48, 96, 216)], flip=True)
    released = plain.model_copy(update={"model": plain.model.model_copy(update={"box_corners": "inclusive"})})
    ours, theirs = (build_predictor(model, CATEGORIES, each) for each in (plain, released))
    assert [each.box_corners for each in (ours, theirs)] == ["half_open", "inclusive"]
    joined: list[list[Detections]] = [[], []]
    for predictor, views in zip((ours, theirs), joined):
        monkeypatch.setattr(
            predictor, "postprocess", lambda candidates, views=views: views.append(candidates) or candidates
        )
        predictor(image)
    (plain_boxes,), (released_boxes,) = ([each.boxes for each in views] for views in joined)
    wider = (released_boxes - plain_boxes)[:, 2:].flatten().tolist()
    assert {round(1 - 96 / side, 3) for side in (48, 96, 216)} <= {round(value, 3) for value in wider}
    assert torch.equal(released_boxes[:, :2], plain_boxes[:, :2])


def test_devices_are_resolved_or_refused() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match=r"'gpu'.*auto, cpu, cuda"):
        resolve_device("gpu")
    with pytest.raises(UserError, match="cuda:99"):
        resolve_device("cuda:99")


# Several views


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def equal(a: Detections, b: Detections) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("boxes", "scores", "labels"))


def test_a_single_view_gives_what_the_detector_itself_gives() -> None:
    model = tiny_detector()
    image = noise(96, 112)
    info = ImageInfo(0, "", 96, 112, 96, 112)
    batch = Batch(torch.from_numpy(image.transpose(2, 0, 1).copy())[None], [info])
    found = Predictor(model, CATEGORIES, [View(96, 200)], torch.device("cpu"), PostProcess(0.2, max_detections=20))
    assert len(found(image)) > 5
    assert equal(found(image), found.postprocess(model(batch)[0]))


def settings(**test: object) -> Config:
    return Config.model_validate({"test": {"score_threshold": 0.2, **test}})


def test_several_scales_of_which_there_is_one_equal_one_scale() -> None:
    size = {"short_side": 80, "max_side": 120}
    model, image = tiny_detector(), noise(100, 130)
    one = build_predictor(model, CATEGORIES, settings(resize=size))
    many = build_predictor(model, CATEGORIES, settings(scales=[size]))
    assert len(one(image)) > 5
    assert equal(one(image), many(image))
    twice = build_predictor(model, CATEGORIES, settings(scales=[size, size]))
    assert equal(one(image), twice(image)), "duplicates are suppressed"


def test_views_are_united_in_original_pixels_before_one_suppression() -> None:
    model, image = tiny_detector(), noise(100, 130)
    sizes = [{"short_side": 64, "max_side": 100}, {"short_side": 96, "max_side": 112}]
    config = settings(scales=sizes, flip=True, max_detections=40)
    assert build_views(config) == [View(64, 100), View(64, 100, True), View(96, 112), View(96, 112, True)]
    result = build_predictor(model, CATEGORIES, config)(image)

    found = []
    for view in build_views(config):
        keep_all = PostProcess(0.2, nms_iou=1.0, max_detections=10_000)
        found.append(Predictor(model, CATEGORIES, [view], torch.device("cpu"), keep_all)(image))
    assert equal(result, PostProcess(0.2, max_detections=40)(Detections.join(found)))
    assert not any(equal(result, PostProcess(0.2, max_detections=40)(one)) for one in found)


def test_with_a_flip_of_a_symmetric_image_nothing_changes() -> None:
    image = scene(200, 300, (100, 60, 200, 120))
    assert np.array_equal(image, image[:, ::-1])
    plain, flipped = (
        Predictor(Brightest(), CATEGORIES, views, torch.device("cpu"))
        for views in ([View(100, 200)], [View(100, 200), View(100, 200, True)])
    )
    assert len(flipped(image)) == 1
    assert equal(plain(image), flipped(image))


def test_a_mirrored_view_finds_objects_where_they_are() -> None:
    image = scene(200, 300, (20, 60, 80, 120))
    found = Predictor(Brightest(), CATEGORIES, [View(200, 400, True)], torch.device("cpu"))(image)
    assert found.boxes.tolist() == [[20, 60, 80, 120]]


def test_mirroring_leaves_the_given_image_as_it_was() -> None:
    image = scene(200, 300, (20, 60, 80, 120))
    before = image.copy()
    views = [View(200, 400, True), View(200, 400)]
    found = Predictor(Brightest(), CATEGORIES, views, torch.device("cpu"))(image)
    assert np.array_equal(image, before)
    assert found.boxes.tolist() == [[20, 60, 80, 120]]


def test_box_average_needs_a_second_stage() -> None:
    class OneStage(Brightest):
        def parameters(self, recurse: bool = True):
            return iter([torch.nn.Parameter(torch.zeros(1))])

    with pytest.raises(UserError, match=r"test\.box_average: 'faster_rcnn'"):
        build_predictor(OneStage(), CATEGORIES, settings(box_average={}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_of_testing_is_its_own(precision: str) -> None:
    """Training in bfloat16 is tested in float32 unless ``test.precision`` says otherwise."""
    model = tiny_detector()
    trained = {"train": {"precision": "bfloat16" if precision == "float32" else "float32"}}
    explicit = {} if precision == "float32" else {"precision": precision}
    config = Config.model_validate({**trained, "test": {"score_threshold": 0.2, **explicit}})
    seen: list[torch.dtype] = []
    model.rpn.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    found = build_predictor(model, CATEGORIES, config)(noise(96, 112))
    assert seen == [getattr(torch, precision)] and len(found) > 5
    plain = build_predictor(model, CATEGORIES, settings())(noise(96, 112))
    assert equal(found, plain) == (precision == "float32")


def test_half_precision_on_a_cpu_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"test\.precision.*bfloat16"):
        build_predictor(tiny_detector(), CATEGORIES, settings(precision="float16"))
