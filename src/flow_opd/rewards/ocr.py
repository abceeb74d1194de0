"""OCR: a real text recogniser and an edit distance."""

from __future__ import annotations

import importlib.util
import logging
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from flow_opd.config.rewards import OCRSettings
from flow_opd.errors import RewardError
from flow_opd.rewards.images import check_pairs, to_pixels
from flow_opd.types import Prompt, RewardScores

HEIGHT = 48  # pixels, fixed by the recogniser
MODEL = "PP-OCRv6_rec_small.onnx"


class TextReader(Protocol):
    """Reads what is written in pictures."""

    def read(self, images: Sequence[NDArray[np.uint8]]) -> list[str]:
        """Returns the text of each RGB picture, uint8 [height, width, 3]; empty where there is none."""
        ...


class LineReader:
    """Reads one line of text per picture with the PP-OCRv6 recogniser that ships in the rapidocr package.

    No detection: the picture is cropped to what differs from its border and squashed to 48 x `width` pixels.
    Meant for signs and labels; pages with several lines need a reader that finds the lines first.
    """

    def __init__(
        self,
        alphabet: str = string.ascii_lowercase,
        *,
        width: int = 96,
        threads: int = 1,
        batch_size: int = 32,
    ) -> None:
        """Loads the recogniser.

        Args:
            alphabet: lower-case characters that may be read; capitals count as these.
            width: pixels; gives width / 8 time steps, so words beyond 6 letters need 128 and more.
            threads: of one inference.
            batch_size: pictures of one inference.

        Raises:
            RewardError: if the recogniser is not installed, or does not know a character of the alphabet.
        """
        self.alphabet, self.width, self.batch_size = alphabet, width, batch_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(_model_path()), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        listed = self._session.get_modelmeta().custom_metadata_map["character"].splitlines()
        self._columns = _columns(["blank", *listed, " "], alphabet)

    def read(self, images: Sequence[NDArray[np.uint8]]) -> list[str]:
        """Returns the line of text in each RGB picture, in lower case."""
        texts: list[str] = []
        for start in range(0, len(images), self.batch_size):
            lines = np.stack([_line(image, self.width) for image in images[start : start + self.batch_size]])
            probabilities = self._session.run(None, {self._input: lines})[0]  # [N, width / 8, classes]
            scores = np.stack([probabilities[:, :, columns].sum(axis=2) for columns in self._columns], axis=2)
            texts += [self._decode(path) for path in scores.argmax(axis=2)]
        return texts

    def _decode(self, path: NDArray[np.int64]) -> str:
        """Returns the text of the best class at each time step: repeats and blanks (0) dropped."""
        kept = path[np.concatenate([[True], path[1:] != path[:-1]])]
        return "".join(self.alphabet[index - 1] for index in kept.tolist() if index > 0)


class OCRReward:
    """1 - edit distance / length between the word asked for and the text read; 1 = spelt right.

    The text read is lower-cased and stripped of spaces; a word that is contained in it has distance 0; the
    distance is capped at the length of the word. Judges prompts whose metadata has a "text".
    Source: Flow-GRPO, arXiv 2505.05470, OCR reward.
    """

    name = "ocr"
    scale = (0.0, 1.0)

    def __init__(self, reader: TextReader) -> None:
        self.reader = reader

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardScores:
        """Returns rewards in [0, 1] with the part "exact": 1 where nothing but the word was read.

        Args:
            images: [B, 3, height, width], float, in [0, 1].
            prompts: B prompts; those without a "text" are not judged.

        Raises:
            RewardError: if the numbers differ, or a text is empty or not a string.
        """
        check_pairs(images, prompts)
        targets = {row: _target(prompt) for row, prompt in enumerate(prompts) if "text" in prompt.metadata}
        pixels = to_pixels(images)
        texts = self.reader.read([pixels[row] for row in targets])
        values, exact = torch.zeros(len(prompts)), torch.zeros(len(prompts))
        valid = torch.zeros(len(prompts), dtype=torch.bool)
        for (row, target), text in zip(targets.items(), texts, strict=True):
            found = _plain(text)
            values[row], exact[row], valid[row] = word_accuracy(found, target), float(found == target), True
        return RewardScores(self.name, values, valid, self.scale, {"exact": exact})


def word_accuracy(found: str, target: str) -> float:
    """Returns 1 - min(distance, n) / n for a target of n letters; 1 where `found` contains the target."""
    if target in found:
        return 1.0
    return 1 - min(edit_distance(found, target), len(target)) / len(target)


def edit_distance(first: str, second: str) -> int:
    """Returns the Levenshtein distance: the fewest insertions, deletions and substitutions."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def _plain(text: str) -> str:
    return text.lower().replace(" ", "")


def _target(prompt: Prompt) -> str:
    text = prompt.metadata["text"]
    if not isinstance(text, str) or not _plain(text):
        raise RewardError(
            f"prompt {prompt.text!r} has no readable text in its metadata",
            value=text,
            allowed="a string with at least one letter",
            fix='write {"text": "word"}',
        )
    return _plain(text)


def _model_path() -> Path:
    package = importlib.util.find_spec("rapidocr")
    path = Path(package.origin).parent / "models" / MODEL if package and package.origin else None
    if path is None or not path.is_file():
        raise RewardError(
            "the text recogniser is missing",
            value=MODEL,
            allowed="rapidocr 3.10",
            fix="pip install rapidocr==3.10.0",
        )
    return path


def _columns(classes: list[str], alphabet: str) -> list[list[int]]:
    """Returns which classes of the recogniser are blank and each character; 0 counts as the letter o."""
    where = {name: index for index, name in enumerate(classes)}
    columns = [[0]]
    for character in alphabet:
        twins = {character, character.upper(), *("0" if character == "o" else "")}
        columns.append([where[twin] for twin in sorted(twins) if twin in where])
        if not columns[-1]:
            raise RewardError(
                "a character the recogniser cannot read",
                value=character,
                allowed="its own classes",
                fix="drop it",
            )
    return columns


def _line(image: NDArray[np.uint8], width: int) -> NDArray[np.float32]:
    """Returns the recogniser's input [3, 48, width], BGR in [-1, 1], of an RGB picture."""
    squashed = cv2.resize(_crop(image), (width, HEIGHT), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(squashed[:, :, ::-1].transpose(2, 0, 1), np.float32) / 127.5 - 1


def _crop(image: NDArray[np.uint8], threshold: float = 0.35, pad: float = 0.12) -> NDArray[np.uint8]:
    """Returns the part of a picture that differs from the median colour of its border, with some room."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    difference = np.abs(image.astype(np.int16) - np.median(border, axis=0).astype(np.int16)).max(axis=2)
    if difference.max() < 16:
        return image
    rows, columns = np.nonzero(difference > threshold * difference.max())
    room = max(1, round(pad * (rows.max() - rows.min() + 1)))
    top, left = max(0, rows.min() - room), max(0, columns.min() - room)
    return image[top : rows.max() + room + 1, left : columns.max() + room + 1]


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


def build(settings: OCRSettings) -> OCRReward:
    """Returns the reward that settings describe."""
    if settings.reader == "page":
        return OCRReward(PageReader())
    return OCRReward(
        LineReader(alphabet=settings.alphabet, width=settings.width, batch_size=settings.batch_size)
    )
