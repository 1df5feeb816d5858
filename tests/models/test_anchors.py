import torch

from dcn_det.models.anchors import cell_anchors, grid_anchors


def test_sizes_at_scale_8() -> None:
    anchors = cell_anchors(16, ratios=(0.5, 1, 2), scales=(8,))
    sizes = (anchors[:, 2:] - anchors[:, :2]).tolist()
    assert sizes == [[184, 96], [128, 128], [88, 176]]


def test_corners_are_the_authors() -> None:
    # Their inclusive table for scales 8, 16, 32, known from Faster R-CNN's code, in the order ratio, scale.
    inclusive = torch.tensor(
        [
            [-84.0, -40.0, 99.0, 55.0],
            [-176.0, -88.0, 191.0, 103.0],
            [-360.0, -184.0, 375.0, 199.0],
            [-56.0, -56.0, 71.0, 71.0],
            [-120.0, -120.0, 135.0, 135.0],
            [-248.0, -248.0, 263.0, 263.0],
            [-36.0, -80.0, 51.0, 95.0],
            [-80.0, -168.0, 95.0, 183.0],
            [-168.0, -344.0, 183.0, 359.0],
        ]
    )
    expected = inclusive + torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert torch.equal(cell_anchors(16, (0.5, 1, 2), (8, 16, 32)), expected)


def test_inclusive_centre() -> None:
    anchors = cell_anchors(16, (0.5, 1, 2), (1, 4, 32))
    inclusive_centre = (anchors[:, :2] + anchors[:, 2:] - 1) / 2
    assert (inclusive_centre == 7.5).all()


def test_grid_order_is_row_column_anchor() -> None:
    cell = cell_anchors(16, (1,), (1, 2))
    grid = grid_anchors(cell, height=3, width=4, stride=16)
    assert grid.shape == (24, 4)
    for y in range(3):
        for x in range(4):
            for a in range(2):
                shift = torch.tensor([x, y, x, y]) * 16.0
                assert torch.equal(grid[(y * 4 + x) * 2 + a], cell[a] + shift)
