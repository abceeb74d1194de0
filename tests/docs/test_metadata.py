"""What the repository says about itself in several places is the same everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import flow_opd

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_one_version_and_one_address() -> None:
    assert PROJECT["version"] == CITATION["version"]
    said = re.findall(r'__version__ = "(.*)"', Path(flow_opd.__file__).read_text())
    assert said in ([], [PROJECT["version"]])
    assert CITATION["license"] == PROJECT["license"]
    repository = PROJECT["urls"]["Repository"]
    assert CITATION["repository-code"] == repository
    assert all(address.startswith(repository) for address in PROJECT["urls"].values())
    texts = [ROOT / "SECURITY.md", *FORMS]
    addresses = [
        found for file in texts for found in re.findall(r"https://github\.com/\S+", file.read_text())
    ]
    assert addresses
    assert all(address.startswith(repository) for address in addresses)


def test_the_citation_names_the_papers_of_the_readme() -> None:
    cited = {each["identifiers"][0]["value"].removeprefix("arXiv:") for each in CITATION["references"]}
    sources = (ROOT / "README.md").read_text().split("## Sources")[1]
    assert cited == set(re.findall(r"arXiv (\d{4}\.\d{5})", sources))
    assert all(each["url"].endswith(each["identifiers"][0]["value"][6:]) for each in CITATION["references"])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_forms_of_issues_have_what_the_site_asks_for(form: Path) -> None:
    content = yaml.safe_load(form.read_text())
    if form.name == "config.yml":
        assert all({"name", "url", "about"} == set(link) for link in content["contact_links"])
        return
    assert {"name", "description", "body"} <= set(content)
    names = [part["id"] for part in content["body"]]
    assert len(set(names)) == len(names)
    assert all(part["attributes"]["label"] for part in content["body"])


def test_hooks_call_the_tools_of_make_test() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    called = {
        hook["entry"].removeprefix(".venv/bin/").split()[0] for hook in hooks if ".venv" in hook["entry"]
    }
    made = set(re.findall(r"\$\(BIN\)/(ruff|lint-imports|mypy)", (ROOT / "Makefile").read_text()))
    assert called == made
    assert {hook["id"] for hook in hooks} >= {"ruff", "ruff-format", "import-linter", "mypy", "end-of-file"}


def test_the_image_gets_all_that_it_copies() -> None:
    wanted = {
        name
        for line in re.findall(r"^COPY (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        for name in line.split()[:-1]
    }
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert wanted == let_in
    assert all((ROOT / name).exists() for name in wanted)
