"""Scores of a few adapters on prompts of one's own, as rows for a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from flow_opd.adapters.lora import LoraWeights
from flow_opd.evaluation.images import EvaluationSet, ImageSampler
from flow_opd.evaluation.intervals import Bootstrap, Scores
from flow_opd.prompts.overlap import identity
from flow_opd.protocols import Reward
from flow_opd.rewards.table import TrainingReward, as_rewards
from flow_opd.runs.base import Base
from flow_opd.runs.prompts import as_prompts
from flow_opd.seeding import generator
from flow_opd.types import Prompt

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScoreRow:
    """What a reward says of the pictures of an adapter."""

    name: str  # of the adapter
    reward: str
    mean: float
    low: float  # of the 95 % interval, which resamples prompts
    high: float
    images: int  # that were judged


class ScoreTable(list[ScoreRow]):
    """A row for each adapter and reward."""

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the rows as a pandas data frame; pandas has to be installed."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self])

    def __str__(self) -> str:
        """Returns a line for each row."""
        width = max((len(row.name) for row in self), default=0)
        lines = [
            f"{row.name:{width}}  {row.reward}  {row.mean:.4g}  ({row.low:.4g} to {row.high:.4g})"
            for row in self
        ]
        return "\n".join(lines)


def evaluate(
    base: Base,
    adapters: Mapping[str, LoraWeights | None],
    prompts: Sequence[Prompt | str],
    rewards: Sequence[TrainingReward | Reward | Callable[..., Any]],
    *,
    image_seeds: Sequence[int] = (0,),
    num_steps: int = 40,
    guidance_scale: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
) -> ScoreTable:
    """Returns the scores of adapters on the same prompts, from the same noise, with 95 % intervals.

    Args:
        base: that draws.
        adapters: name -> adapter; None is the base alone.
        prompts: what is drawn; each once from each seed.
        rewards: that judge; a plain function may be one: (images [B, 3, height, width] in [0, 1], B prompts)
            -> [B]. A reward that has further values gives a row to each.
        image_seeds: of the pictures of a prompt.
        num_steps: of the ODE, >= 1.
        guidance_scale: classifier-free guidance, >= 1; 1 switches it off.
        batch_size: pictures drawn at once.
        seed: root of all noise.

    Raises:
        AdapterError: if an adapter does not fit the base.
        RewardError: if a reward fails.
    """
    asked = EvaluationSet("prompts", tuple(as_prompts(prompts)), tuple(image_seeds))
    sampler = ImageSampler(
        base.backbone,
        encoder=base.backbone,
        sigmas=base.backbone.sigmas(num_steps),
        batch_size=batch_size,
        seeder=partial(generator, seed, "image"),
        processes=base.processes,
    )
    judges = [one.reward for one in as_rewards(rewards)]
    bootstrap, table = Bootstrap(), ScoreTable()
    for name, lora in adapters.items():
        with base.with_adapter(lora) as adapter:
            field = base.policy(adapter, guidance_scale)
            readings = sampler.score(field, asked, judges, on_batch=lambda shots, images: None)
        for reading, values in readings.items():
            scores = _scores(asked, values)
            cell = bootstrap.cell(scores)
            table.append(ScoreRow(name, reading, cell.mean, cell.low, cell.high, scores.n))
    return table


def _scores(asked: EvaluationSet, values: Sequence[float | None]) -> Scores:
    """Returns the scores of all images; lines that ask for the same are one prompt."""
    shots = asked.shots()
    return Scores.of(
        [f"{index}:{asked.prompts[index].text}" for index, _ in shots],
        [seed for _, seed in shots],
        [np.nan if value is None else value for value in values],
        [value is not None for value in values],
        prompts=[identity(asked.prompts[index]) for index, _ in shots],
    )
