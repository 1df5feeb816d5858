"""Object detection with deformable convolutional networks.

Importing the package imports nothing heavy: take what is needed from its parts, for example
``from dcn_det.ops import deform_conv2d``.
"""

__version__ = "0.1.0"
