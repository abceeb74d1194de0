"""The house rules that a reader relies on, as far as a machine can check them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flow_opd

SOURCE = Path(flow_opd.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE = 300
LONGEST_FUNCTION = 60


def _functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_and_functions_stay_short(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= LONGEST_FILE
    for function in _functions(ast.parse(text)):
        assert function.end_lineno is not None
        first = function.body[0]
        says = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) else 0
        length = function.end_lineno - function.lineno + 1 - says
        assert length <= LONGEST_FUNCTION, f"{function.name} has {length} lines"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_public_things_have_docstrings(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), "the module says what it is for"
    public = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    nested = {id(inner) for outer in _functions(tree) for inner in ast.walk(outer) if inner is not outer}
    bare = [node.name for node in public if id(node) not in nested and not ast.get_docstring(node)]
    assert not bare


def test_no_pickle_and_no_untrusted_code() -> None:
    forbidden = {"torch.load", "eval", "exec"}
    for file in FILES:
        tree = ast.parse(file.read_text())
        imported = {
            name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
        } | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"pickle", "cloudpickle", "dill"}, file
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & forbidden, file
        assert "trust_remote_code=True" not in file.read_text(), file


def test_options_are_never_swallowed() -> None:
    """A catch-all **kwargs turns a typo into silence; getattr on settings turns it into a default."""
    for file in FILES:
        tree = ast.parse(file.read_text())
        swallowing = [function.name for function in _functions(tree) if function.args.kwarg]
        assert not swallowing, f"{file}: {swallowing}"
        reads = [
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) == "getattr"
            and ast.unparse(node.args[0]) in ("config", "settings")
        ]
        assert not reads, f"{file}: {reads}"


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = (
        "import sys, flow_opd.cli\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'cv2', 'matplotlib', 'onnxruntime'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_reports_need_no_torch() -> None:
    code = "import sys, flow_opd.reports.html, flow_opd.reports.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("stage", ["merge", "card", "publish", "report", "prompts"])
def test_a_stage_that_loads_no_model_does_not_wait_for_the_libraries_of_models(stage: str) -> None:
    code = (
        f"import sys, flow_opd.stages.{stage}\n"
        "sys.exit(', '.join(sorted({'diffusers', 'transformers', 'peft'} & set(sys.modules))) or None)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
