"""Links between the markdown pages and to files of the repository: what `make docs` refuses, in a second."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://example.org/repository"


@pytest.fixture(scope="module")
def links() -> ModuleType:
    spec = importlib.util.spec_from_file_location("links", ROOT / "docs" / "site" / "links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_link_of_the_pages_leads_to_a_file(links: ModuleType, tmp_path: Path) -> None:
    links.write_pages(ROOT, tmp_path, {}, repository=REPOSITORY)
    assert (tmp_path / "index.md").is_file()
    assert (tmp_path / "README.md").is_file()
    assert (tmp_path / "guides" / "one-card.md").is_file()
    assert f"({REPOSITORY}/blob/main/src/" in (tmp_path / "architecture.md").read_text()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for name in ("docs/images/a.png", "docs/guides/b.md", "src/package/c.py", "src/package/d.py", "Makefile"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    (root / "README.md").write_text("[index](docs/index.md#top) ![picture](docs/images/a.png)\n")
    (root / "docs" / "guides" / "b.md").write_text("[code](../../src/package/c.py) ![it](../images/a.png)\n")
    (root / "docs" / "index.md").write_text(
        "[read](../README.md#two), [`guide`](guides/b.md), [code](../src/package/d.py), "
        "[all](../src/package),\n[there](https://example.org/x.md), [here](#top), "
        "[![badge](images/a.png)](../Makefile)\n\n"
        "```\n[in code](../nowhere.md)\n```\nand `[in code](../nowhere.md)`\n"
    )
    return root


def test_where_links_lead_on_the_site(links: ModuleType, repository: Path, tmp_path: Path) -> None:
    modules = {Path("src/package/c.py"): "api/package.c.rst"}
    links.write_pages(repository, tmp_path / "out", modules, repository=REPOSITORY)
    assert (tmp_path / "out" / "README.md").read_text() == "[index](index.md#top) ![picture](images/a.png)\n"
    guide = (tmp_path / "out" / "guides" / "b.md").read_text()
    assert guide == "[code](../api/package.c.rst) ![it](../images/a.png)\n"
    assert (tmp_path / "out" / "index.md").read_text() == (
        f"[read](README.md#two), [`guide`](guides/b.md), [code]({REPOSITORY}/blob/main/src/package/d.py), "
        f"[all]({REPOSITORY}/tree/main/src/package),\n[there](https://example.org/x.md), [here](#top), "
        f"[![badge](images/a.png)]({REPOSITORY}/blob/main/Makefile)\n\n"
        "```\n[in code](../nowhere.md)\n```\nand `[in code](../nowhere.md)`\n"
    )


def test_links_to_nothing_are_told_with_file_and_line(
    links: ModuleType, repository: Path, tmp_path: Path
) -> None:
    page = repository / "docs" / "guides" / "b.md"
    page.write_text("fine\n\n[one](c.md)\n[two](../../src/package/e.py#x) ![three](../images/z.png)\n")
    with pytest.raises(links.BrokenLinkError) as caught:
        links.write_pages(repository, tmp_path / "out", {}, repository=REPOSITORY)
    assert str(caught.value).splitlines() == [
        "docs/guides/b.md:3: link to a file that is not there: c.md",
        "docs/guides/b.md:4: link to a file that is not there: ../../src/package/e.py#x",
        "docs/guides/b.md:4: link to a file that is not there: ../images/z.png",
    ]
