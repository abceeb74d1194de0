"""Copies the markdown pages beside each other and turns their links to where things are on the site."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

FRONT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
BRANCH = "main"
_CODE = re.compile(
    r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)`*\s*$|(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)", re.M | re.S
)
_LINK = re.compile(r"(?P<text>!?\[(?:[^\[\]]|\[[^\]]*\]|!\[[^\]]*\]\([^)]*\))*\])\((?P<target>[^()\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


class BrokenLinkError(Exception):
    """Links to files that are not there, a line for each."""


def write_pages(root: Path, out: Path, modules: Mapping[Path, str], *, repository: str) -> None:
    """Writes all pages of the repository below `out`.

    Args:
        root: of the repository.
        out: folder of Sphinx's sources.
        modules: source file, relative to the root -> its page, relative to `out`.
        repository: address of the repository, for links to files that are no pages.

    Raises:
        BrokenLinkError: if links lead to nothing.
    """
    files = [root / "docs" / "index.md", *(root / name for name in FRONT if (root / name).is_file())]
    files += sorted(each for each in (root / "docs").rglob("*.md") if each not in files)
    pages = {file.relative_to(root): _place(file.relative_to(root)) for file in files}
    places = {**pages, **{file: Path(page) for file, page in modules.items()}}
    broken: list[str] = []
    for source, target in pages.items():
        text, wrong = relinked((root / source).read_text(), source, target, places, root, repository)
        broken += wrong
        (out / target).parent.mkdir(parents=True, exist_ok=True)
        (out / target).write_text(text)
    if broken:
        raise BrokenLinkError("\n".join(broken))
    shutil.copytree(root / "docs" / "images", out / "images", dirs_exist_ok=True)


def relinked(
    text: str, source: Path, target: Path, places: Mapping[Path, Path], root: Path, repository: str
) -> tuple[str, list[str]]:
    """Returns a page's text with its links as they are on the site, and what is wrong with the others."""
    wrong: list[str] = []
    code = [match.span() for match in _CODE.finditer(text)]

    def replaced(match: re.Match[str]) -> str:
        before, link = match["text"], match["target"]
        inside = before[1:-1] if before.startswith("[![") else ""  # a picture that is a link
        if inside:
            before = f"[{_LINK.sub(replaced, inside)}]"
        if any(start <= match.start("target") < end for start, end in code) and not inside:
            return match[0]
        path, mark, anchor = link.partition("#")
        if _ELSEWHERE.match(link) or not path:
            return f"{before}({link})"
        aim = Path(os.path.normpath(source.parent / path))
        if not (root / aim).exists():
            line = text.count("\n", 0, match.start()) + 1
            wrong.append(f"{source}:{line}: link to a file that is not there: {link}")
        return f"{before}({_address(aim, target, places, root, repository)}{mark}{anchor})"

    return _LINK.sub(replaced, text), wrong


def _address(aim: Path, target: Path, places: Mapping[Path, Path], root: Path, repository: str) -> str:
    """Returns what to write on the page `target` for the file `aim`."""
    if aim in places:
        return os.path.relpath(places[aim], target.parent)
    if aim.is_relative_to("docs/images"):
        return os.path.relpath(aim.relative_to("docs"), target.parent)
    kind = "tree" if (root / aim).is_dir() else "blob"
    return f"{repository}/{kind}/{BRANCH}/{aim}"


def _place(source: Path) -> Path:
    return source.relative_to("docs") if source.is_relative_to("docs") else source
