"""The table of an evaluation: in the terminal and in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flow_opd.evaluation.results import Estimate, Metric, Results
from flow_opd.reports.numbers import (
    AVERAGE_DECIMALS,
    best_rows,
    estimate_of,
    headline,
    interval,
    number,
    percent,
    signed,
    tag_table,
)


def results_view(results: Results) -> RenderableType:
    """Returns the scores, the differences of the average and the retained gains, to be printed with rich."""
    parts: list[RenderableType] = [Text(headline(results), style="bold"), _score_table(results)]
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


def _score_table(results: Results) -> Table:
    """A row per policy, a column per metric of the average, the best in bold."""
    columns = [(one.name, one.label, one.decimals) for one in results.columns]
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
            one = estimate_of(row, metric)
            if one is None:
                texts.append(Text("–", "dim"))
                continue
            mean = Text(number(one.mean, decimals), "bold" if best.get(metric) == row.name else "")
            texts.append(mean.append(f" ±{number((one.high - one.low) / 2, decimals)}", "dim not bold"))
        table.add_row(row.name, *texts)
    return table


def results_markdown(results: Results) -> str:
    """Returns scores, differences of the average, kept gains, scores by tag, and metrics by domain."""
    parts = [headline(results), _scores(results), _differences(results), _kept(results)]
    parts += [_by_tag(results, metric) for metric in results.columns]
    parts += [_everywhere(results, metric) for metric in results.columns]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scores(results: Results) -> str:
    columns = [(one.name, one.label, one.decimals) for one in results.columns]
    columns.append(("average", "average", AVERAGE_DECIMALS))
    best = best_rows(results)
    lines = [
        [
            row.name,
            *(
                _cell(estimate_of(row, name), places, best.get(name) == row.name)
                for name, _, places in columns
            ),
        ]
        for row in results.rows
    ]
    return _table(["policy", *(label for _, label, _ in columns)], lines)


def _differences(results: Results) -> str:
    averages = [one for one in results.differences if one.metric == "average"]
    lines = [
        [
            f"{one.pair[0]} − {one.pair[1]}",
            signed(one.mean, AVERAGE_DECIMALS),
            interval(one, AVERAGE_DECIMALS, sign=True),
        ]
        for one in averages
    ]
    return _table(["paired difference of the average", "mean", "95 % interval"], lines)


def _kept(results: Results) -> str:
    lines = []
    for domain, one in results.retention.items():
        if one.mean is None or one.low is None or one.high is None:
            lines.append([domain, "–", "the teacher has no clear gain"])
        else:
            lines.append([domain, percent(one.mean), f"{percent(one.low)} to {percent(one.high)}"])
    return _table(["domain", "teacher's gain kept", "95 % interval"], lines)


def _by_tag(results: Results, metric: Metric) -> str:
    """A metric that is a mean over tags, tag by tag."""
    table = tag_table(results, metric)
    if table is None:
        return ""
    lines = [
        [name, *(_cell(one, table.decimals) for one in estimates)] for name, estimates in table.rows.items()
    ]
    return _table([f"{table.label} by tag", *table.tags], lines)


def _everywhere(results: Results, metric: Metric) -> str:
    """A metric on the prompts of every domain, where it judges other domains than its own."""
    domains = list(
        dict.fromkeys(
            domain for row in results.rows for domain, metrics in row.cells.items() if metric.name in metrics
        )
    )
    if set(domains) <= {metric.domain}:
        return ""
    lines = [
        [
            row.name,
            *(_cell(row.cells.get(domain, {}).get(metric.name), metric.decimals) for domain in domains),
        ]
        for row in results.rows
    ]
    return _table([f"{metric.label} by prompts", *domains], lines)


def _cell(estimate: Estimate | None, decimals: int, best: bool = False) -> str:
    if estimate is None:
        return "–"
    mean = number(estimate.mean, decimals)
    return f"{f'**{mean}**' if best else mean} ({interval(estimate, decimals)})"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(line)} |" for line in lines]
    if not rows:
        return ""
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows])
