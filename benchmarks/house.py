"""The structure of the package in numbers: rooms, files, lines, and the way of a distillation through them.

    python benchmarks/house.py

It counts folders and Python files of src/flow_opd and modules in a circle of imports. Then it takes one round
of a distillation of the miniature from its command: which frames of ours stand on the stack at
`optimizer.step`, and which files are entered by a function that is given settings, or a section of them.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1] / "src" / "flow_opd"
SHORT = 60  # lines
WORDS = (
    *("run.rounds=1", "run.threads=1", "prompts_per_round=4", "sampling.num_steps=2"),
    "sampling.stochastic_steps=[0, 0]",
)


def files() -> list[Path]:
    """Returns all modules of the package."""
    return sorted(ROOT.rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Returns the modules of the package that a file imports, at its top or inside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("flow_opd"):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & {module(each) for each in files()}


def module(file: Path) -> str:
    """Returns the dotted name of a file."""
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles() -> list[str]:
    """Returns the modules that import themselves by way of others, at their top."""
    above: dict[str, set[str]] = {}
    known = {module(each) for each in files()}
    for file in files():
        top = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ImportFrom)]
        above[module(file)] = {node.module for node in top if node.module} & known

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(above[start])
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen.add(one)
                waiting += above.get(one, set())
        return seen

    return [name for name in above if name in reached(name)]


def frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yields the frames of ours, innermost first."""
    while frame is not None:
        if Path(frame.f_code.co_filename).is_relative_to(ROOT):
            yield frame
        frame = frame.f_back


def walk() -> tuple[list[str], set[str]]:
    """Returns the frames at the first optimizer step, outermost first, and the files that settings enter."""
    import torch

    from flow_opd.cli import main
    from flow_opd.config.base import Settings

    stack: list[str] = []
    entered: set[str] = set()
    inside = (str(ROOT / "config"), str(ROOT / "cli"))

    def see(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(ROOT)) and not name.startswith(inside):
            given = frame.f_code.co_varnames[: frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount]
            if any(isinstance(frame.f_locals.get(each), Settings) for each in given):
                entered.add(str(Path(name).relative_to(ROOT)))

    step = torch.optim.AdamW.step

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not stack:
            stack.extend(reversed([f"{one.f_code.co_qualname}" for one in frames(sys._getframe(1))]))
        return step(self, *args, **kwargs)

    torch.optim.AdamW.step = watched  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        words = [word for each in WORDS for word in ("--set", each)]
        sys.argv = ["flow-opd", "distill", "asset:configs/distill.yaml", "--out", f"{folder}/run", *words]
        sys.setprofile(see)
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
        finally:
            sys.setprofile(None)
    return stack, entered


def main_() -> None:
    """Prints the numbers."""
    sizes = {file: file.read_text().count("\n") for file in files()}
    rooms = {file.parent for file in files()}
    print(f"rooms {len(rooms)}  files {len(sizes)}  lines {sum(sizes.values())}")
    small = [file for file, lines in sizes.items() if lines < SHORT and file.name != "__init__.py"]
    long = sum(lines > 300 for lines in sizes.values())
    print(f"files under {SHORT} lines {len(small)}  over 300 lines {long}")
    print(f"modules in a circle {len(circles())}")
    stack, entered = walk()
    print(f"frames from the command to the optimizer step {len(stack)}: {' > '.join(stack)}")
    print(f"files that settings enter {len(entered)}: {', '.join(sorted(entered))}")


if __name__ == "__main__":
    main_()
