"""The notebook runs from top to bottom in a fresh kernel, and its stored outputs are those of its cells."""

from __future__ import annotations

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

FILE = Path(__file__).parents[2] / "examples" / "own_objective.ipynb"
SHORTER = {
    "rounds=30": "rounds=5",
    "limit=48": "limit=2",
    "num_steps=12": "num_steps=2",
    '"num_steps": 8': '"num_steps": 2',
}


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(FILE, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        for long, short in SHORTER.items():
            cell.source = cell.source.replace(long, short)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    said = str([cell.outputs for cell in code])
    assert "5 of 5 rounds" in said
    assert said.count("image/png") == 2
    assert "stderr" not in said  # neither a warning nor a library's progress bar
    assert (tmp_path / "runs/notebook/my-adapter/adapter_model.safetensors").is_file()


def test_it_is_stored_as_it_was_executed() -> None:
    notebook = nbformat.read(FILE, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    said = str([cell.outputs for cell in code])
    assert "30 of 30 rounds" in said
    assert re.search(r"student +ocr ", said)
    assert FILE.stat().st_size < 300_000
    for long in SHORTER:
        assert any(long in cell.source for cell in code)
