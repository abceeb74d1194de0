"""The plan as tables for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flow_opd.planning.machines import GIB, RESERVE
from flow_opd.planning.plan import Plan

_MEMORY_WORDS = {
    "base": "base, frozen, all policies share it",
    "vae": "VAE, to decode images for the reward",
    "frozen_adapters": "frozen adapters",
    "student_adapter": "student's adapter",
    "gradients": "its gradients",
    "optimizer": "its two AdamW moments",
    "moving_average": "its moving average",
    "text_embeddings": "embeddings of a round's prompts",
}
_FLOPS_WORDS = {
    "rollout": "student, walking without gradients",
    "student_forward": "student, forward",
    "student_backward": "student, backward",
    "recompute": "student, computed again (checkpointing)",
    "teacher": "teacher of each row",
    "anchor": "anchor",
    "reference": "reference (the bare base)",
    "decode": "decoding images",
}


def plan_view(plan: Plan) -> RenderableType:
    """Returns the plan, to be printed with rich."""
    parts: list[RenderableType] = [
        Text(_headline(plan), style="bold"),
        Text(_explanation(plan)),
        _parameters(plan),
        _memory(plan),
        _flops(plan),
        _cards(plan),
    ]
    for verdict in plan.verdicts:
        if verdict.advice:
            parts.append(Text(f"{verdict.card}: {verdict.advice}.", style="yellow"))
    parts.append(Text(_small_print(plan), style="dim"))
    return Group(*(item for part in parts for item in (part, Text())))


def _headline(plan: Plan) -> str:
    kind = "distillation" if plan.kind == "distill" else "Flow-GRPO teacher"
    _, height, width = plan.base["latent_shape"]
    return (
        f"{kind} on {plan.base['path']}: latents {height} x {width}, {plan.base['text_tokens']} text tokens, "
        f"{plan.base['dtype']}, {plan.updates} updates"
    )


def _explanation(plan: Plan) -> str:
    walks = "on its own walk" if plan.work.rollout == 0 else "on steps of earlier walks"
    others = [
        f"{rows:g} of the {name}"
        for name, rows in (
            ("teachers", plan.work.teacher),
            ("anchor", plan.work.anchor),
            ("reference", plan.work.reference),
        )
        if rows
    ]
    beside = f", beside {' and '.join(others)}" if others else ""
    return (
        f"An update takes the student forward and backward at {plan.work.student:g} states {walks}{beside}; "
        "guidance other than 1 makes a forward pass two. "
        f"Of each round's trajectories a process walks {plan.share.trajectories}, "
        f"{plan.share.micro_batch_size} at a time."
    )


def _parameters(plan: Plan) -> Table:
    parameters = plan.parameters
    table = Table("parameters", header_style="bold", box=None, pad_edge=False)
    table.add_column("", justify="right")
    table.add_row("transformer", _millions(parameters.transformer))
    table.add_row("VAE", _millions(parameters.vae))
    for name, number in parameters.text_encoders.items():
        table.add_row(name.replace("_", " "), _millions(number))
    for name, number in parameters.adapters.items():
        table.add_row(f"adapter {name}", _millions(number))
    table.add_row("modules with an adapter", str(parameters.adapted_modules))
    return table


def _memory(plan: Plan) -> Table:
    table = Table("memory of a process, GiB", header_style="bold", box=None, pad_edge=False)
    for on in (False, True):
        mark = "  (as configured)" if on == plan.checkpointing else ""
        table.add_column(f"{'with' if on else 'without'} checkpointing{mark}", justify="right")
    pair = [plan.memory[on] for on in (False, True)]
    for part, words in _MEMORY_WORDS.items():
        if pair[0].fixed[part]:
            table.add_row(words, *(_gib(one.fixed[part]) for one in pair))
    table.add_row("activations that the backward pass needs", *(_gib(one.kept) for one in pair))
    table.add_row("working set on top, at the worst moment", *(_gib(one.working) for one in pair))
    table.add_row("peak while training", *(_gib(one.total) for one in pair), style="bold")
    table.add_row("before it, while prompts are encoded", *[_gib(plan.encoding)] * 2, style="dim")
    naive = ["" if on != plan.checkpointing else _gib(plan.naive_memory) for on in (False, True)]
    table.add_row("naive: a pipeline for each policy", *naive, style="dim")
    return table


def _flops(plan: Plan) -> Table:
    table = Table("TFLOPs of an update", header_style="bold", box=None, pad_edge=False)
    table.add_column("this schedule", justify="right")
    table.add_column("naive", justify="right")
    total, naive = sum(plan.flops.values()), sum(plan.naive_flops.values())
    for part, words in _FLOPS_WORDS.items():
        if plan.flops[part] or plan.naive_flops[part]:
            table.add_row(words, _tera(plan.flops[part]), _tera(plan.naive_flops[part]))
    table.add_row("rewards", "not planned" if plan.work.decode else "none", "not planned", style="dim")
    table.add_row("total", _tera(total), f"{_tera(naive)}  (x {naive / total:.2f})", style="bold")
    return table


def _cards(plan: Plan) -> Table:
    table = Table(
        "card", "GiB", "needs", "fits", "GPU-hours", "naive", header_style="bold", box=None, pad_edge=False
    )
    table.add_column("largest micro batch without / with checkpointing", justify="right")
    for one in plan.verdicts:
        table.add_row(
            one.card,
            f"{one.memory_gib:.1f}",
            f"{one.needs_gib:.1f}",
            Text("yes", "green") if one.fits else Text("no", "red"),
            _hours(one.gpu_hours),
            _hours(one.naive_gpu_hours),
            f"{one.largest_micro_batch} / {one.largest_micro_batch_with_checkpointing}",
        )
    return table


def _small_print(plan: Plan) -> str:
    lines = [
        f"Hours at {100 * plan.assumed.utilisation:.0f} % of each card's dense bfloat16 peak; "
        f"a card needs {RESERVE:g} GiB more than the tensors.",
        "Not planned: rewards, evaluation, waiting for other processes, the optimizer's arithmetic.",
        "Naive: every policy a pipeline of its own with encoders and VAE; walks first, then trains on the "
        "states again; decodes every image.",
    ]
    if plan.assumed.processes > 1:
        lines.append(f"{plan.assumed.processes} processes: divide the hours; each holds the whole base.")
    return "\n".join([*lines, *(f"{note[:1].upper()}{note[1:]}." for note in plan.notes)])


def _millions(number: int) -> str:
    return f"{number / 1e6:,.2f} M"


def _gib(number: int) -> str:
    return f"{number / GIB:.2f}" if number >= GIB / 100 else f"{number / GIB:.5f}"


def _tera(number: float) -> str:
    return f"{number / 1e12:,.2f}" if number >= 1e11 else f"{number / 1e12:.5f}"


def _hours(number: float) -> str:
    return f"{number:,.1f}" if number >= 1 else f"{number:.2g}"
