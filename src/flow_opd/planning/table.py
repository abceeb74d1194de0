"""The plan as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flow_opd.planning.machines import GIB, RESERVE
from flow_opd.planning.plan import Plan

MIB = 2**20

_MEMORY_WORDS = {
    "base": "base, frozen, shared by all policies",
    "vae": "VAE, for the reward's images",
    "reward_models": "reward models",
    "text_encoders": "text encoders (without 'embeddings')",
    "frozen_adapters": "frozen adapters",
    "student_adapter": "student's adapter",
    "gradients": "its gradients",
    "optimizer": "its two AdamW moments",
    "moving_average": "its moving average",
    "text_embeddings": "embedded prompts of a round",
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
    "rewards": "rewards",
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
        f"{rows:.0f} of the {name}"
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
    if parameters.reward_models:
        table.add_row("reward models", _millions(parameters.reward_models))
    for name, number in parameters.adapters.items():
        table.add_row(f"adapter {name}", _millions(number))
    table.add_row("modules with an adapter", str(parameters.adapted_modules))
    return table


def _memory(plan: Plan) -> Table:
    unit, name = (GIB, "GiB") if plan.memory[False].total >= GIB else (MIB, "MiB")
    table = Table(f"{name} of a process", header_style="bold", box=None, pad_edge=False)
    for on in (False, True):
        mark = " *" if on == plan.checkpointing else ""
        table.add_column(f"{'with' if on else 'without'}\ncheckpointing{mark}", justify="right")

    def row(words: str, values: Sequence[int], style: str = "") -> None:
        table.add_row(words, *(f"{value / unit:,.2f}" if value else "" for value in values), style=style)

    pair = [plan.memory[on] for on in (False, True)]
    for part, words in _MEMORY_WORDS.items():
        if pair[0].fixed[part]:
            row(words, [one.fixed[part] for one in pair])
    row("activations kept for the backward pass", [one.kept for one in pair])
    row("working set on top, at the worst moment", [one.working for one in pair])
    row("peak of the training", [one.total for one in pair], "bold")
    row("before it, while prompts are encoded", [plan.encoding] * 2, "dim")
    naive = [plan.naive_memory if on == plan.checkpointing else 0 for on in (False, True)]
    row("naive: a whole pipeline for each policy", naive, "dim")
    table.caption = "* as configured"
    table.caption_justify = "left"
    return table


def _flops(plan: Plan) -> Table:
    total, naive = sum(plan.flops.values()), sum(plan.naive_flops.values())
    unit, name = (1e12, "TFLOP") if total >= 1e12 else (1e9, "GFLOP")
    table = Table(f"{name} of an update", header_style="bold", box=None, pad_edge=False)
    for header in ("this\nschedule", "", "naive\nschedule"):
        table.add_column(header, justify="right")
    for part, words in _FLOPS_WORDS.items():
        ours, theirs = plan.flops[part], plan.naive_flops[part]
        if ours or theirs:
            share = f"{100 * ours / total:.0f} %" if ours else ""
            table.add_row(words, f"{ours / unit:,.2f}" if ours else "", share, f"{theirs / unit:,.2f}")
    if not plan.work.scored:
        table.add_row("rewards", "none", "", "not planned", style="dim")
    table.add_row("total", f"{total / unit:,.2f}", "", f"{naive / unit:,.2f}", style="bold")
    return table


def _cards(plan: Plan) -> Table:
    table = Table("card", header_style="bold", box=None, pad_edge=False)
    hours = ("hours",) if plan.assumed.processes > 1 else ()
    for header in (
        "GiB",
        "needs",
        "fits",
        "GPU-\nhours",
        *hours,
        "naive",
        "largest\nmicro batch",
        "with check-\npointing",
    ):
        table.add_column(header, justify="right")
    for one in plan.verdicts:
        wall = (_hours(one.gpu_hours / plan.assumed.processes),) if hours else ()
        table.add_row(
            one.card,
            f"{one.memory_gib:.1f}",
            f"{one.needs_gib:.1f}",
            Text("yes", "green") if one.fits else Text("no", "red"),
            _hours(one.gpu_hours),
            *wall,
            _hours(one.naive_gpu_hours),
            str(one.largest_micro_batch),
            str(one.largest_micro_batch_with_checkpointing),
        )
    return table


def _small_print(plan: Plan) -> str:
    lines = [
        f"Hours at {100 * plan.assumed.utilisation:.0f} % of each card's dense bfloat16 peak; "
        f"a card needs {RESERVE:g} GiB more than the tensors."
    ]
    if plan.flops["decode"]:
        lines.append("The VAE computes in float32, at half of that; rewards at the float32 rate.")
    if plan.cpu_seconds:
        lines.append(
            f"Rewards on the processor take {plan.cpu_seconds:,.1f} core-seconds of an update, in the hours."
        )
    lines += [
        "Not planned: evaluation, waiting for other processes, the optimizer's arithmetic.",
        "Naive: every policy is a pipeline of its own, with encoders and VAE; the student walks first and is "
        "trained on the states again; every image is decoded.",
        f"An embedded prompt takes {plan.bytes_per_prompt / MIB:.2f} MiB.",
    ]
    if plan.assumed.processes > 1:
        lines.append("Hours: GPU-hours by the number of processes; each holds the whole base if not sharded.")
    return "\n".join([*lines, *(f"{_begun(note)}." for note in plan.notes)])


def _millions(number: int) -> str:
    return f"{number / 1e6:,.2f} M"


def _hours(number: float) -> str:
    return f"{number:,.1f}" if number >= 1 else f"{number:.2g}"


def _begun(note: str) -> str:
    """Returns a note as a sentence begins, unless it begins with a key."""
    return note if note.startswith("base.") else note[:1].upper() + note[1:]
