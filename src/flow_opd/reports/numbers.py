"""How numbers are written, equally in the page and in the terminal."""

from __future__ import annotations

from flow_opd.reports.run import Cell, Results, Row

AVERAGE_DECIMALS = 3


def number(value: float, decimals: int) -> str:
    """Returns `value` with a fixed number of decimals and a true minus sign."""
    return f"{value:.{decimals}f}".replace("-", "−")


def signed(value: float, decimals: int) -> str:
    """Returns `value` with its sign, + or −, always shown."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def interval(cell: Cell, decimals: int, *, sign: bool = False) -> str:
    """Returns "low to high" of a cell."""
    write = signed if sign else number
    return f"{write(cell.low, decimals)} to {write(cell.high, decimals)}"


def percent(share: float) -> str:
    """Returns a share as whole percent, number and sign held together by a no-break space."""
    return f"{number(100 * share, 0)}\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """Returns a time in the two largest fitting units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def best_rows(results: Results) -> dict[str, str]:
    """Returns metric (or "average") -> the row with the highest mean, where two rows or more have one."""
    best = {}
    for metric in [*(one.name for one in results.averaged), "average"]:
        measured = [(cell.mean, row.name) for row in results.rows if (cell := cell_of(row, metric))]
        if len(measured) > 1:
            best[metric] = max(measured)[1]
    return best


def cell_of(row: Row, metric: str) -> Cell | None:
    """Returns the cell of a metric on its own prompts, or of the average, if measured."""
    return row.average if metric == "average" else row.metrics.get(metric)


def headline(results: Results) -> str:
    """Returns the result in one or two sentences: the gain over the base, over merging, and what is kept."""
    roles = results.roles
    if roles.student is None:
        return f"{len(results.rows)} policies on the same prompts and seeds."
    student = results.row(roles.student)
    base = results.row(roles.base)
    gain = results.difference((roles.student, roles.base), "average")
    if student is None or base is None or student.average is None or base.average is None or gain is None:
        return f"{roles.student} against {roles.base}, metric by metric."
    verb = "lifts" if gain.low > 0 else "lowers" if gain.high < 0 else "does not clearly change"
    before, after = (
        number(base.average.mean, AVERAGE_DECIMALS),
        number(student.average.mean, AVERAGE_DECIMALS),
    )
    difference = signed(gain.mean, AVERAGE_DECIMALS)
    text = (
        f"Distillation {verb} the average score from {before} to {after} "
        f"({difference}, 95 % interval {interval(gain, AVERAGE_DECIMALS, sign=True)})"
    )
    if roles.merge is not None and (over := results.difference((roles.student, roles.merge), "average")):
        text += f", {signed(over.mean, AVERAGE_DECIMALS)} over merging the teachers alone"
    kept = [one.mean for one in results.retention.values() if one.mean is not None]
    if not kept:
        return f"{text}."
    share = percent(kept[0]) if len(kept) == 1 else f"{percent(min(kept))} to {percent(max(kept))}"
    return f"{text}. The student keeps {share} of what its teachers gained, each in its own domain."
