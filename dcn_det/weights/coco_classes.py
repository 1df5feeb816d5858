"""The categories of COCO's detection task by ascending id, the order of the authors' classes."""

from __future__ import annotations

from dcn_det.structures import Category

_RUNS: tuple[tuple[int, str], ...] = (
    (1, "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant"),
    (13, "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe"),
    (27, "backpack, umbrella"),
    (31, "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove"),
    (41, "skateboard, surfboard, tennis racket, bottle"),
    (46, "wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog"),
    (59, "pizza, donut, cake, chair, couch, potted plant, bed"),
    (67, "dining table"),
    (70, "toilet"),
    (72, "tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator"),
    (84, "book, clock, vase, scissors, teddy bear, hair drier, toothbrush"),
)
"""Names of consecutive ids, from the first; some ids are not used."""

COCO_CATEGORIES = tuple(
    Category(first + offset, name) for first, names in _RUNS for offset, name in enumerate(names.split(", "))
)
