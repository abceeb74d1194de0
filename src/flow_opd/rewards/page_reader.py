"""Reads all text of a picture, wherever it stands, with the models that rapidocr ships in its package."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class PageReader:
    """Finds the lines of a picture, reads each and joins them in reading order.

    For pictures of several hundred pixels; signs of 32 pixels want `LineReader`, which needs no detector and
    is some thirty times faster.
    """

    def __init__(self, *, threads: int = 1) -> None:
        """Loads the three models of the rapidocr package; `threads` are those of one inference."""
        from rapidocr import RapidOCR

        options = {
            "Global.log_level": "error",
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        }
        self._engine = RapidOCR(params=options)
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)  # an empty picture is no warning here

    def read(self, images: Sequence[NDArray[np.uint8]]) -> list[str]:
        """Returns the text of each RGB picture, uint8 [height, width, 3], in lower case and one line."""
        texts = []
        for image in images:
            found = self._engine(np.ascontiguousarray(image[:, :, ::-1]))  # it expects BGR
            texts.append(" ".join(found.txts or ()).lower())
        return texts
