"""The report opens alone, escapes what users wrote, and shows the numbers of results.json."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from errors import refused
from flow_opd.errors import DataError
from flow_opd.reports.html import write_report

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """Collects the addresses, the tags and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name.split(":")[-1] in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run_folder, tmp_path / "demo")


def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_nothing_is_loaded_from_elsewhere(folder: Path) -> None:
    html = write_report(folder).read_text(encoding="utf-8")
    addresses = Page(html).addresses
    assert sum(address.startswith("data:image/png;base64,") for address in addresses) == 6 * 7
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\((?!#)|@import|<script|<link", html)


def test_prompts_configs_and_names_are_escaped(folder: Path) -> None:
    attack = "<script>alert(1)</script>"
    listing = json.loads((folder / "images/pictures.json").read_text())
    listing["rows"][0]["prompt"] = attack
    (folder / "images/pictures.json").write_text(json.dumps(listing))
    (folder / "config.yaml").write_text(f"name: {attack}\n")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, f"{attack}/a": 1.0, f"{attack}/b": 2.0}))
    text = (folder / "results.json").read_text().replace("student-no-anchor", attack)
    (folder / "results.json").write_text(text)
    found = page(folder)
    assert "script" not in found.tags
    assert found.text.count(attack) >= 4


def test_the_numbers_of_the_results_are_on_the_page(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    text = page(folder).text
    for row in results["rows"]:
        cell = row["metrics"]["geneval"]
        assert f"{cell['mean']:.3f}" in text
        assert f"{cell['low']:.3f} to {cell['high']:.3f}" in text
        assert f"{row['metrics']['deqa']['mean']:.2f}" in text
        assert f"{row['tags']['geneval']['counting']['mean']:.3f}" in text
    assert f"{100 * results['retention']['text']['mean']:.0f}\N{NO-BREAK SPACE}%" in text
    assert results["protocol"]["hash"] in text
    assert "composition 0, 1, 2, 3; preference 0;" in text
    assert results["protocol"]["resampled"] in text


def test_the_best_of_each_column_is_bold(folder: Path) -> None:
    html = write_report(folder).read_text(encoding="utf-8")
    rows = json.loads((folder / "results.json").read_text())["rows"]
    best = [f"{max(row['average']['mean'] for row in rows):.3f}"]
    best += [f"{max(row['metrics'][name]['mean'] for row in rows):.3f}" for name in ("geneval", "ocr")]
    assert set(best) <= set(re.findall(r'class="best">([^<]+)<', html))
    assert html.count('class="best"') == 5


def test_everything_but_the_results_may_be_missing(folder: Path) -> None:
    for name in ("metrics.jsonl", "config.yaml", "manifest.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "images")
    results = json.loads((folder / "results.json").read_text())
    del results["differences"], results["retention"], results["wall_seconds"], results["peak_rss_mb"]
    for row in results["rows"][1:-1]:
        row["metrics"], row["average"], row["cells"] = {}, None, {}
    (folder / "results.json").write_text(json.dumps(results))
    found = page(folder)
    assert "img" not in found.tags
    assert "Training" not in found.text
    assert "metric by metric" in found.text
    assert "–" in found.text


def test_a_retention_without_numbers_is_said_in_words(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    results["retention"]["text"] |= {"mean": None, "low": None, "high": None}
    (folder / "results.json").write_text(json.dumps(results))
    assert "no clear gain" in page(folder).text


def test_a_run_without_results_is_refused_and_nothing_is_written(folder: Path) -> None:
    (folder / "results.json").unlink()
    with refused(DataError, names=["results.json"]):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("content", ["{", '{"rows": 3}', "[]"])
def test_damaged_results_are_refused(folder: Path, content: str) -> None:
    (folder / "results.json").write_text(content)
    with refused(DataError, names=["results.json"]):
        write_report(folder)


@pytest.mark.parametrize(
    "line", ["{", '{"loss": 1.0}', '{"step": 3, "loss": "low"}', "[1]", '{"step": null}']
)
def test_a_damaged_line_of_metrics_is_named(folder: Path, line: str) -> None:
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n' + line + "\n")
    with refused(DataError, names=["metrics.jsonl:2"]):
        write_report(folder)


def test_a_truncated_strip_is_refused(folder: Path) -> None:
    strip = folder / "images" / "002.png"
    strip.write_bytes(strip.read_bytes()[:100])
    with refused(DataError, names=["pictures.json: image file is truncated"]):
        write_report(folder)
