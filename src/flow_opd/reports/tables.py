"""An evaluation as people read it: numbers and words, equally everywhere; tables in terminal and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flow_opd.evaluation.results import Estimate, Metric, Results, Row

AVERAGE_DECIMALS = 3


def number(value: float, decimals: int) -> str:
    """Returns `value` with a fixed number of decimals and a true minus sign."""
    return f"{value:.{decimals}f}".replace("-", "−")


def signed(value: float, decimals: int) -> str:
    """Returns `value` with its sign, + or −, always shown."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def interval(estimate: Estimate, decimals: int, *, sign: bool = False) -> str:
    """Returns the interval as "low to high"."""
    write = signed if sign else number
    return f"{write(estimate.low, decimals)} to {write(estimate.high, decimals)}"


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


def seeds_by_domain(seeds: Mapping[str, tuple[int, ...]]) -> str:
    """Returns the image seeds, said once where all domains have the same."""
    listed = {domain: ", ".join(map(str, own)) for domain, own in seeds.items()}
    if len(set(listed.values())) == 1:
        return next(iter(listed.values()))
    return "; ".join(f"{domain} {own}" for domain, own in listed.items())


def images_per_prompt(seeds: Mapping[str, tuple[int, ...]]) -> str:
    """Returns how many images of a prompt are drawn, as a range where domains differ."""
    counts = sorted({len(own) for own in seeds.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def best_rows(results: Results) -> dict[str, str]:
    """Returns metric (or "average") -> the row with the highest mean, where two rows or more have one."""
    best = {}
    for metric in [*(one.name for one in results.columns), "average"]:
        measured = [(one.mean, row.name) for row in results.rows if (one := estimate_of(row, metric))]
        if len(measured) > 1:
            best[metric] = max(measured)[1]
    return best


def estimate_of(row: Row, metric: str) -> Estimate | None:
    """Returns mean and interval of a metric on its own prompts, or of the average, if measured."""
    return row.average if metric == "average" else row.metrics.get(metric)


@dataclass(frozen=True)
class TagTable:
    """A score that is a mean over tags, tag by tag."""

    label: str
    decimals: int
    tags: tuple[str, ...]
    rows: Mapping[str, tuple[Estimate | None, ...]]  # policy -> one per tag


def tag_table(results: Results, metric: Metric) -> TagTable | None:
    """Returns the tags of a metric under every policy; None where it has no tags."""
    tags = tuple(dict.fromkeys(tag for row in results.rows for tag in row.tags.get(metric.name, {})))
    if not tags:
        return None
    rows = {row.name: tuple(row.tags.get(metric.name, {}).get(tag) for tag in tags) for row in results.rows}
    return TagTable(metric.label, metric.decimals, tags, rows)


def headline(results: Results) -> str:
    """Returns the result in one or two sentences: the gains over the base and others, and what is kept."""
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
    for baseline in roles.baselines:
        if against := results.difference((roles.student, baseline), "average"):
            bounds = interval(against, AVERAGE_DECIMALS, sign=True)
            text += f", {signed(against.mean, AVERAGE_DECIMALS)} ({bounds}) against {baseline}"
    kept = [one.mean for one in results.retention.values() if one.mean is not None]
    if not kept:
        return f"{text}."
    share = percent(kept[0]) if len(kept) == 1 else f"{percent(min(kept))} to {percent(max(kept))}"
    return f"{text}. The student keeps {share} of what its teachers gained, each in its own domain."


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
        for line in _kept_lines(results):
            table.add_row(*line)
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
    return _table(["domain", "teacher's gain kept", "95 % interval"], _kept_lines(results))


def _kept_lines(results: Results) -> list[list[str]]:
    """Domain, kept share and its interval of each teacher."""
    return [
        [domain, "–", "the teacher has no clear gain"]
        if (share := one.share) is None
        else [domain, percent(share.mean), f"{percent(share.low)} to {percent(share.high)}"]
        for domain, one in results.retention.items()
    ]


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
