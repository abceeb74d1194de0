"""Plots as inline SVG that takes its colours and its font from the page, so that dark mode works.

Matplotlib draws with stand-in colours; each is replaced by a CSS variable of the report.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from flow_opd.evaluation.results import Estimate

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

    RcSettings = dict[RcKeyType, object]

Curve = Sequence[tuple[float, float]]  # (step, value)

INK, MUTED, LINE, GOOD, BAD, EVEN = ("#010203", "#020304", "#030405", "#040506", "#050607", "#060708")
SERIES = tuple(f"#0a0b{index:02x}" for index in range(6))
CSS_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    GOOD: "var(--good)",
    BAD: "var(--bad)",
    EVEN: "var(--muted)",
    **{color: f"var(--series-{index + 1})" for index, color in enumerate(SERIES)},
}
STYLE: RcSettings = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "figure.facecolor": "none",
}


@dataclass(frozen=True)
class Panel:
    """One plot of the training curves; its heading and legend are set as text by the page."""

    title: str
    legend: tuple[tuple[str, int], ...]  # label, number of its colour from 1; empty for a single curve
    svg: str


def forest(panels: Mapping[str, Sequence[Estimate | None]], labels: Sequence[str]) -> str:
    """Returns a forest plot as SVG: a panel per metric on its own scale, a line per pair, zero marked.

    An interval above zero is green, one below red, one that holds zero grey.

    Args:
        panels: metric -> one difference per label, None where not measured.
        labels: names of the pairs, from top to bottom.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 0.75 + 0.3 * len(labels)), layout=ConstrainedLayoutEngine(wspace=0.06))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (title, differences) in zip(axes, panels.items(), strict=True):
            axis.set_title(title, fontsize=9.5, color=INK, loc="left")
            axis.axvline(0, color=MUTED, linewidth=1)
            for place, one in enumerate(differences):
                if one is not None:
                    color = GOOD if one.low > 0 else BAD if one.high < 0 else EVEN
                    axis.plot([one.low, one.high], [place, place], color=color, linewidth=2.2)
                    axis.plot([one.mean], [place], "o", color=color, markersize=5)
            axis.set_yticks(range(len(labels)), labels, color=INK)
            axis.set_ylim(len(labels) - 0.5, -0.5)
            axis.locator_params(axis="x", nbins=4)
            axis.margins(x=0.12)
            axis.grid(visible=False, axis="y")
            axis.tick_params(length=0)
            axis.spines["left"].set_visible(False)
        return _themed(figure, "forest")


def curve_panels(curves: Mapping[str, Curve]) -> list[Panel]:
    """Returns small plots of training curves; "kl/text" and "kl/quality" share the panel "kl"."""
    groups: dict[str, dict[str, Curve]] = {}
    for key, curve in curves.items():
        title, _, label = key.rpartition("/")
        groups.setdefault(title or key, {})[label] = curve
    return [_curve_panel(title, group) for title, group in groups.items()]


def _curve_panel(title: str, group: Mapping[str, Curve]) -> Panel:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4, 1.9), layout="constrained")
        axis = figure.subplots()
        for index, curve in enumerate(group.values()):
            points = np.array(curve, dtype=np.float64)
            _draw_curve(axis, points[:, 0], points[:, 1], SERIES[index % len(SERIES)])
        values = np.array([value for curve in group.values() for _, value in curve])
        values = values[np.isfinite(values)]
        if values.size and values.min() > 0 and values.max() / values.min() > 50:
            axis.set_yscale("log")
            axis.minorticks_off()
        else:
            axis.locator_params(axis="y", nbins=4)
        axis.locator_params(axis="x", nbins=5)
        axis.tick_params(length=0)
        axis.set_xlabel("step", fontsize=8)
        svg = _themed(figure, title)
    labels = [(label, index % len(SERIES) + 1) for index, label in enumerate(group)]
    return Panel(title, tuple(labels) if len(group) > 1 else (), svg)


def _draw_curve(axis: Axes, steps: NDArray[np.float64], values: NDArray[np.float64], color: str) -> None:
    """The curve itself, faint, under its running mean over a twentieth of its length."""
    window = max(1, len(values) // 20)
    if window < 3:
        axis.plot(steps, values, color=color, linewidth=1.6, marker="o" if len(values) == 1 else None)
        return
    axis.plot(steps, values, color=color, linewidth=0.7, alpha=0.35)
    kernel = np.ones(window) / window
    axis.plot(
        np.convolve(steps, kernel, "valid"), np.convolve(values, kernel, "valid"), color=color, linewidth=1.6
    )


def _themed(figure: Figure, name: str) -> str:
    """The figure as an SVG element without prolog or metadata, its colours named by CSS variables."""
    buffer = StringIO()
    # Ids are hashed with the name: those of two figures on one page must not meet.
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg class="plot" viewBox="\1" role="img">', text, count=1
    )
    for stand_in, variable in CSS_VARIABLES.items():
        text = text.replace(stand_in, variable)
    return text


def span_percent(value: float, low: float, high: float) -> float:
    """Returns where `value` lies between `low` and `high`, in percent, kept within 0 and 100."""
    if not math.isfinite(value) or high <= low:
        return 50.0
    return min(100.0, max(0.0, 100.0 * (value - low) / (high - low)))
