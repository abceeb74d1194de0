"""Pictures survive a run folder bit by bit, and the composed grid shows them where it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flow_opd.errors import DataError
from flow_opd.reports.grid import PictureRow, Pictures, compose_grid, load_pictures, save_pictures


def sample() -> Pictures:
    generator = np.random.default_rng(0)
    rows = tuple(
        PictureRow(f"prompt {seed}", "text", seed, generator.integers(0, 256, (2, 8, 6, 3), dtype=np.uint8))
        for seed in range(3)
    )
    return Pictures(("base", "student"), rows)


def test_a_round_trip_through_the_run_folder_keeps_every_bit(tmp_path: Path) -> None:
    before = sample()
    save_pictures(before, tmp_path / "images")
    after = load_pictures(tmp_path / "images")
    assert after is not None
    assert after.columns == before.columns
    for one, other in zip(before.rows, after.rows, strict=True):
        assert (one.prompt, one.domain, one.seed, one.notes) == (
            other.prompt,
            other.domain,
            other.seed,
            other.notes,
        )
        np.testing.assert_array_equal(one.images, other.images)


def test_no_folder_is_no_pictures(tmp_path: Path) -> None:
    assert load_pictures(tmp_path / "images") is None


def test_tiles_are_enlarged_in_whole_pixels() -> None:
    pictures = sample()
    sheet = np.asarray(compose_grid(pictures, scale=5, gap=4, caption_width=100))
    assert sheet.shape[1] == 100 + 2 * (6 * 5 + 4) + 4
    last = sheet[-4 - 8 * 5 : -4, -4 - 6 * 5 : -4]
    np.testing.assert_array_equal(last[::5, ::5], pictures.rows[-1].images[-1])
    np.testing.assert_array_equal(last[4::5, 4::5], pictures.rows[-1].images[-1])


def test_captions_and_headings_are_drawn() -> None:
    sheet = np.asarray(compose_grid(sample(), scale=5, gap=4, caption_width=100))
    assert (sheet[-44:-4, :100] < 128).any()
    assert (sheet[:20, 100:] < 128).any()


@pytest.mark.parametrize(
    ("shape", "notes"), [((3, 8, 6, 3), ()), ((2, 8, 6), ()), ((2, 8, 6, 3), ("one note for two",))]
)
def test_pictures_that_do_not_fit_the_columns_are_refused(
    shape: tuple[int, ...], notes: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match="one picture per column"):
        Pictures(("base", "student"), (PictureRow("p", "text", 0, np.zeros(shape, np.uint8), notes),))
