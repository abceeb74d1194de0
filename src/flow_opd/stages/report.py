"""Writes the page of a finished run."""

from __future__ import annotations

from pathlib import Path

from flow_opd.config.options import ReportSettings
from flow_opd.files import write_text
from flow_opd.reports.html import load_run, render_report, write_report


def run(settings: ReportSettings) -> Path:
    """Writes the page and returns its path."""
    if settings.out is None:
        return write_report(settings.folder)
    write_text(settings.out, render_report(load_run(settings.folder)))
    return settings.out
