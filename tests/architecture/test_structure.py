"""The house rules that a reader relies on, as far as a machine can check them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flow_opd
from flow_opd import layout

SOURCE = Path(flow_opd.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE = 300
LONGEST_FUNCTION = 60


def _functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def _trees() -> Iterator[tuple[Path, ast.Module]]:
    for file in FILES:
        yield file.relative_to(SOURCE), ast.parse(file.read_text())


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_files_and_functions_stay_short() -> None:
    """A docstring is not counted in a function; ruff counts statements, and files not at all."""
    long = [f"{file.relative_to(SOURCE)}" for file in FILES if file.read_text().count("\n") > LONGEST_FILE]
    for file, tree in _trees():
        for function in _functions(tree):
            first = function.body[0]
            says = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) else 0
            assert function.end_lineno is not None
            length = function.end_lineno - function.lineno + 1 - says
            if length > LONGEST_FUNCTION:
                long.append(f"{file}: {function.name} has {length} lines")
    assert not long


def test_no_code_from_elsewhere_is_trusted() -> None:
    """What else could run foreign code, pickle and torch.load, is forbidden in pyproject.toml (TID251, S)."""
    trusting = [
        f"{file}:{call.lineno}"
        for file, tree in _trees()
        for call in _calls(tree)
        for option in call.keywords
        if option.arg == "trust_remote_code" and ast.unparse(option.value) != "False"
    ]
    assert not trusting


def test_options_are_never_swallowed() -> None:
    """A catch-all **kwargs turns a typo into silence; getattr on settings turns it into a default."""
    swallowing = [
        f"{file}: **{function.args.kwarg.arg} of {function.name}"
        for file, tree in _trees()
        for function in _functions(tree)
        if function.args.kwarg
    ] + [
        f"{file}: {ast.unparse(call)}"
        for file, tree in _trees()
        for call in _calls(tree)
        if ast.unparse(call.func) == "getattr" and ast.unparse(call.args[0]) in ("config", "settings")
    ]
    assert not swallowing


def test_the_files_of_a_run_folder_are_named_in_one_place() -> None:
    names = {value for value in vars(layout).values() if isinstance(value, str) and Path(value).suffix}
    assert {layout.RESULTS, layout.CONFIG} <= names
    again = [
        f"{file}:{node.lineno}: {node.value}"
        for file, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in names and file.name != "layout.py"
    ]
    assert not again


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = (
        "import sys, flow_opd.cli\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'cv2', 'matplotlib', 'onnxruntime'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_reports_need_no_torch() -> None:
    modules = ", ".join(f"flow_opd.reports.{name}" for name in ("html", "tables", "card"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_stages_that_load_no_model_do_not_wait_for_the_libraries_of_models() -> None:
    stages = ("merge", "card", "publish", "report", "prompts")
    code = (
        f"import sys, {', '.join(f'flow_opd.stages.{stage}' for stage in stages)}\n"
        "sys.exit(', '.join(sorted({'diffusers', 'transformers', 'peft'} & set(sys.modules))) or None)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
