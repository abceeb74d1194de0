"""The wheel and the source distribution: what is in them, and that the wheel works outside the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
DOMAINS = ("composition", "text", "preference", "quality")
TINY = (
    *(
        "distill.run.rounds=1",
        "distill.prompts_per_round=4",
        "evaluate.num_steps=1",
        "evaluate.grid_prompts=0",
    ),
    *(f"evaluate.domains.{domain}.limit=2" for domain in DOMAINS),
)


def run(*words: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    result = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, cwd=cwd, env=env, check=False
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is built from it, not from the repository."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has the wheel, and of this environment all but its flow-opd."""
    venv = tmp_path_factory.mktemp("elsewhere") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    python = venv / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, wheel, cwd=venv.parent)
    packages = next(venv.glob("lib/python*/site-packages"))
    # A path in a .pth file is searched last, and the .pth files in it, such as ours, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin"


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {**kept, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    files = [file for file in (SOURCE / "flow_opd").rglob("*") if file.is_file()]
    kept = {file.relative_to(SOURCE) for file in files if file.suffix != ".pyc"}
    assert set(found) == {path.as_posix() for path in kept}
    assert all(found[path.as_posix()] == (SOURCE / path).read_bytes() for path in kept)
    assert "flow_opd/py.typed" in found


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = archive.read(name).decode().splitlines()
    assert f"Version: {VERSION}" in lines
    assert "License-Expression: Apache-2.0" in lines
    assert "Classifier: Typing :: Typed" in lines
    links = {line.split(": ")[1].split(",")[0] for line in lines if line.startswith("Project-URL: ")}
    assert links == {"Homepage", "Documentation", "Repository", "Issues", "Changelog"}


def test_the_source_distribution_is_small(dist: Path) -> None:
    (file,) = dist.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2].partition("/")[0] for name in archive.getnames()}
    texts = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "pyproject.toml"}
    assert names == {"src", "configs", *texts, ".gitignore", "PKG-INFO"}
    assert file.stat().st_size < 12e6


def test_the_wheel_works_outside_the_repository(elsewhere: Path, tmp_path: Path) -> None:
    where = run(
        elsewhere / "python",
        "-c",
        "import flow_opd; print(flow_opd.__file__)",
        cwd=tmp_path,
        env=environment(),
    )
    assert Path(where.strip()).is_relative_to(elsewhere.parent)
    command = elsewhere / "flow-opd"
    version = run(command, "--version", cwd=tmp_path, env=environment())
    assert version.strip() == VERSION
    resolved = run(command, "demo", "--check", cwd=tmp_path, env=environment())
    assert "asset:teachers/composition" in resolved
    schema = json.loads(run(command, "schema", "demo", cwd=tmp_path, env=environment()))
    assert schema["title"] == "demo"
    assert not list(tmp_path.iterdir())
    words = [f"--set={assignment}" for assignment in TINY]
    run(command, "demo", "--out", "demo", *words, cwd=tmp_path, env=environment())
    assert (tmp_path / "demo" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "demo" / "report.html").is_file()
