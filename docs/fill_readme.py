"""Puts the measured table and the picture grid into the README: `python docs/fill_readme.py runs/table`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
TITLE = "The same prompts and noise under the base, four teachers, their merge and the student"
GRID = f"![{TITLE}](docs/images/grid.png)"
UNDER_GRID = (
    "The first three prompts of each domain, not chosen; one seed. Look at the failures, too: a strict "
    "GenEval below one half means that most composition pictures still have some fact wrong."
)


def fill(run: Path, command: str) -> None:
    """Replaces what stands between the two markers by `results.md` of the run."""
    headline, scores, *others = (run / "results.md").read_text().strip().split("\n\n")
    results = json.loads((run / "results.json").read_text())
    minutes, seconds = divmod(round(results["wall_seconds"]), 60)
    counts = {file["count"] for file in results["protocol"]["prompts"].values()}
    caption = (
        "Each metric on its own held-out prompts, with its 95 % interval; GenEval is the strict one. "
        "The average is (GenEval + OCR + DeQA / 5 + PickScore / 26) / 4. The judges of GenEval, DeQA and "
        "PickScore are the miniature's own ([docs/miniature.md](docs/miniature.md)): these numbers do not "
        "compare with published ones. "
        f"All numbers and pictures: `{command}`, {max(counts)} prompts a domain, {minutes} min {seconds} s "
        f"on two cores (`{run}/results.md`, `grid.png`)."
    )
    titles = "Differences, kept gains, and every metric on the prompts of other domains"
    hidden = "\n\n".join(others)
    details = [f"<details><summary>{titles}</summary>", hidden, "</details>"]
    block = [GRID, UNDER_GRID, headline, scores, caption, *details]
    before, rest = README.read_text().split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(before + BEGIN + "\n" + "\n\n".join(block) + "\n" + END + after)
    shutil.copy(run / "grid.png", DOCS / "images" / "grid.png")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    fill(folder, f"make {folder.name}")
