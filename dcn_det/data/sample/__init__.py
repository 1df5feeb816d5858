"""The embedded data set: real handwritten digits over real photographs, with tight boxes, in COCO format.

It is composed offline from what scikit-learn carries: 1,797 digits of 8x8 pixels, two photographs of 640x427. Training,
testing and every tool can so be tried, and regressions caught, without a download. Training and validation share
neither a digit nor a pixel of photograph. ``python -m dcn_det.data.sample FOLDER`` writes the set.
"""

from dcn_det.data.sample.make import DEFAULT_ROOT, TRAIN_IMAGES, VAL_IMAGES, holds_sample, make_sample

__all__ = ["DEFAULT_ROOT", "TRAIN_IMAGES", "VAL_IMAGES", "holds_sample", "make_sample"]
