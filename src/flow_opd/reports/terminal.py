"""The results table for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flow_opd.reports.numbers import (
    AVERAGE_DECIMALS,
    best_rows,
    cell_of,
    headline,
    interval,
    number,
    percent,
    signed,
)
from flow_opd.reports.run import Results


def results_view(results: Results) -> RenderableType:
    """Returns the scores, the differences of the average and the retained gains, to be printed with rich."""
    parts: list[RenderableType] = [Text(headline(results), style="bold"), _scores(results)]
    averages = [one for one in results.differences if one.metric == "average"]
    if averages:
        table = Table("difference of the average", "mean", "95 % interval", box=None, header_style="dim")
        for one in averages:
            style = "green" if one.low > 0 else "red" if one.high < 0 else ""
            table.add_row(
                f"{one.pair[0]} − {one.pair[1]}",
                Text(signed(one.mean, AVERAGE_DECIMALS), style),
                interval(one, AVERAGE_DECIMALS, sign=True),
            )
        parts.append(table)
    if results.retention:
        table = Table("domain", "teacher's gain kept", "95 % interval", box=None, header_style="dim")
        for domain, kept in results.retention.items():
            if kept.mean is None or kept.low is None or kept.high is None:
                table.add_row(domain, "–", "the teacher has no clear gain")
            else:
                table.add_row(domain, percent(kept.mean), f"{percent(kept.low)} to {percent(kept.high)}")
        parts.append(table)
    return Group(*(item for part in parts for item in (part, Text())))


def _scores(results: Results) -> Table:
    """A row per policy, a column per metric of the average, the best in bold."""
    columns = [(one.name, one.label, one.decimals) for one in results.averaged]
    columns.append(("average", "average", AVERAGE_DECIMALS))
    best = best_rows(results)
    table = Table(
        "policy", header_style="dim", caption="each metric on its own prompts, ± half of the 95 % interval"
    )
    for _, label, _ in columns:
        table.add_column(label, justify="right")
    for row in results.rows:
        texts = []
        for metric, _, decimals in columns:
            cell = cell_of(row, metric)
            if cell is None:
                texts.append(Text("–", "dim"))
                continue
            mean = Text(number(cell.mean, decimals), "bold" if best.get(metric) == row.name else "")
            texts.append(mean.append(f" ±{number((cell.high - cell.low) / 2, decimals)}", "dim not bold"))
        table.add_row(row.name, *texts)
    return table
