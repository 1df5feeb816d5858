"""Embedded sample data set, in COCO's format."""

from __future__ import annotations

from dcn_det.data.formats.coco import CocoFormat
from dcn_det.data.sample import holds_sample, make_sample
from dcn_det.progress import Count


class SampleFormat(CocoFormat):
    """Embedded sample data set, written to ``data.root`` on first use."""

    def prepare(self, progress: Count | None = None) -> None:
        if not holds_sample(self.root):
            make_sample(self.root, progress=progress)
