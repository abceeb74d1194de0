"""Plots are plain SVG with the page's colours and without ids that could meet."""

from __future__ import annotations

import math
import re

import pytest

from flow_opd.evaluation.results import Estimate
from flow_opd.reports.plots import curve_panels, forest, span_percent


def test_keys_with_one_prefix_share_a_panel_and_have_a_legend() -> None:
    curve = [(float(step), 1.0 / step) for step in range(1, 100)]
    panels = curve_panels({"loss": curve, "kl/text": curve, "kl/quality": curve})
    assert [panel.title for panel in panels] == ["loss", "kl"]
    assert panels[0].legend == ()
    assert panels[1].legend == (("text", 1), ("quality", 2))
    assert "var(--series-2)" in panels[1].svg


def test_no_fixed_colours_and_no_shared_ids() -> None:
    curve = [(float(step), step**0.5) for step in range(1, 100)]
    svgs = [panel.svg for panel in curve_panels({"loss": curve, "grad_norm": curve})]
    svgs.append(forest({"GenEval": [Estimate(mean=0.1, low=0.05, high=0.15, n=4), None]}, ["a − b", "b − c"]))
    ids = [name for svg in svgs for name in set(re.findall(r'<clipPath id="([^"]+)"', svg))]
    assert len(ids) == len(set(ids)) == 3
    assert all(
        svg.startswith("<svg") and not re.search(r"#0\d0\d0\d|#0a0b|http:", svg.split(">", 1)[0])
        for svg in svgs
    )
    assert not any(re.search(r"(?:fill|stroke): #", svg) for svg in svgs)


@pytest.mark.parametrize(
    ("ends", "color"), [((0.1, 0.2), "--good"), ((-0.2, -0.1), "--bad"), ((-0.1, 0.2), "--muted")]
)
def test_the_colour_tells_where_the_interval_lies(ends: tuple[float, float], color: str) -> None:
    one = Estimate(mean=sum(ends) / 2, low=ends[0], high=ends[1], n=4)
    svg = forest({"OCR": [one]}, ["student − base"])
    assert set(re.findall(r"stroke: var\((--[a-z]+)\); stroke-width: 2.2", svg)) == {color}


def test_gaps_and_single_points_are_drawn() -> None:
    panels = curve_panels({"a": [(1.0, math.nan), (2.0, 1.0)], "b": [(1.0, 0.5)], "c": [(1.0, math.nan)]})
    assert len(panels) == 3


def test_span_percent() -> None:
    assert [span_percent(v, 1.0, 3.0) for v in (0.0, 1.0, 1.5, 4.0)] == [0.0, 0.0, 25.0, 100.0]
    assert span_percent(1.0, 1.0, 1.0) == 50.0
