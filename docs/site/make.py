"""Builds the documentation as HTML: python docs/site/make.py (or `make docs`).

The pages are the markdown files of the repository, copied beside each other, and one page for each module of
the package. A link to a file or a heading that is not there fails the build, as does every other warning.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

from sphinx.cmd.build import build_main

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from api import write_api  # noqa: E402
from links import BrokenLinkError, write_pages  # noqa: E402

ROOT = HERE.parents[1]
PACKAGE = "flow_opd"
SOURCES, SITE = ROOT / "build" / "docs-sources", ROOT / "build" / "docs"


def main() -> int:
    """Writes the site to build/docs and returns the exit code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    shutil.rmtree(SOURCES, ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)  # a page that is gone must not stay
    modules = write_api(ROOT / "src" / PACKAGE, SOURCES / "api")
    try:
        write_pages(ROOT, SOURCES, modules, repository=project["urls"]["Repository"])
    except BrokenLinkError as error:
        print(error, file=sys.stderr)
        return 1
    words = ["-b", "html", "-c", str(HERE), "-j", "auto", "-q", "-W", "--keep-going", str(SOURCES), str(SITE)]
    failed = build_main(words)
    if not failed:
        print(f"{len(list(SITE.rglob('*.html')))} pages: {(SITE / 'index.html').relative_to(ROOT)}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
