"""Embedded sample data set: handwritten digits over photographs, with tight boxes, in COCO's format.

It is composed offline from data that scikit-learn contains: 1,797 digits of 8x8 pixels and two photographs of 640x427.
All commands can be tried and tested on it without a download. Training and validation images share neither digits nor
pixels of the photographs. ``python -m dcn_det.data.sample FOLDER`` writes the data set. With ``--digits``, it writes
images of single digits in one folder per class, for classifiers; with ``--masks``, images of larger digits with masks
of their ink, for semantic segmentation.
"""

from dcn_det.data.sample.digits import holds_digits, make_digits
from dcn_det.data.sample.make import DEFAULT_ROOT, TRAIN_IMAGES, VAL_IMAGES, holds_sample, make_sample
from dcn_det.data.sample.masks import holds_sample_masks, make_sample_masks

__all__ = [
    "DEFAULT_ROOT",
    "TRAIN_IMAGES",
    "VAL_IMAGES",
    "holds_digits",
    "holds_sample",
    "holds_sample_masks",
    "make_digits",
    "make_sample",
    "make_sample_masks",
]
