"""One specification per reward: what to load, and how much it counts."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from flow_opd.config.base import Name, PositiveFloat, PositiveInt, Problem, refuse
from flow_opd.config.kinds import Kind, load
from flow_opd.config.parts import Part
from flow_opd.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from flow_opd.protocols import Reward

TRAINING = ("weight", "tasks", "training_score")  # settings that a score in an evaluation does not depend on
AVERAGE = "average"  # of the scores, a column of its own
Share = Annotated[float, Field(ge=0, lt=1)]


class RewardSettings(Part):
    """A reward. A class of one's own is a `flow_opd.protocols.Reward`; a function of one's own takes (images
    [B, 3, height, width] in [0, 1], B prompts) and returns a score for each image, [B]."""

    kind: ClassVar[Kind] = Kind(
        "reward",
        "flow_opd.rewards",
        {
            "geneval": "flow_opd.config.rewards:GenEvalSettings",
            "ocr": "flow_opd.config.rewards:OCRSettings",
            "deqa": "flow_opd.config.rewards:DeQASettings",
            "pickscore": "flow_opd.config.rewards:PickScoreSettings",
        },
        method="score",
        takes=2,
        context=("device",),
    )
    weight: PositiveFloat = 1.0
    """Training: factor of this reward in the weighted sum."""
    tasks: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Training: tasks whose prompts this reward judges; null: all."""

    def build(self, device: torch.device | str = "cpu") -> Reward:
        """Returns the reward; its networks, if it has any, compute on `device`."""
        reward: Reward = load("flow_opd.rewards.table:with_scores")(self.made({"device": device}))
        name = getattr(reward, "name", None)
        taken = (*self.kind.own, AVERAGE)
        ours = isinstance(name, str) and (
            name in taken or name.startswith(tuple(f"{each}_" for each in taken))
        )
        if not isinstance(name, str) or ours or not hasattr(reward, "scale"):
            raise ConfigError(
                f"reward {self.name!r} does not say what it is",
                value=name,
                allowed=f"a `name` of its own, not {', '.join(taken)} or one that begins so, and a `scale`",
                fix="give it both; a function is called by its own name",
            )
        return reward

    @property
    def judge(self) -> str:
        """The model or rule that judges, for the protocol of an evaluation."""
        return self.name

    @property
    def models(self) -> Mapping[str, str]:
        """Setting -> path, asset or hub id of a model that judges; its content decides the scores."""
        return {}

    def for_training(self) -> dict[str, object]:
        """Returns the settings that only a training reads, where they are not the defaults."""
        return self.model_dump(include=set(TRAINING), exclude_defaults=True)


class GenEvalSettings(RewardSettings):
    """Composition: are the objects of the prompt there, in number, colour and place? Trains on the continuous
    or the unclamped score; reports have the strict and the continuous one. A Mask2Former and a CLIP find the
    objects, as in GenEval, or a palette in the miniature's world."""

    name: Literal["geneval"] = "geneval"
    """Which reward this is."""
    detector: Name | None = None
    """Folder, 'asset:NAME' or hub id of a Mask2Former for instances of COCO, in place of a palette."""
    colors: Name | None = None
    """Mask2Former: folder, 'asset:NAME' or hub id of the CLIP that names colours; GenEval's is
    openai/clip-vit-large-patch14."""
    palette: Name | None = None
    """Palette file of the detector that knows the objects by their colours, or 'asset:NAME'."""
    side: PositiveInt | None = None
    """Mask2Former: pixels of the shorter side of what it sees, 800 in GenEval; null takes the model's own
    preprocessor_config.json."""
    threshold: Share = 0.3
    """Mask2Former: objects count from above this score."""
    counting_threshold: Share = 0.9
    """Mask2Former: the same for prompts with the tag counting."""
    training_score: Literal["continuous", "unclamped"] = "continuous"
    """Training: 'continuous' gives no object a credit below 0; 'unclamped' does, as in Flow-GRPO: five
    objects where one is asked for cost more than two. Reports keep the continuous score."""
    batch_size: PositiveInt = 4
    """Mask2Former: images of one pass."""

    @model_validator(mode="after")
    def _one_detector(self) -> GenEvalSettings:
        either = "either 'palette', or 'detector' with 'colors'"
        if self.detector is None and self.palette is None:
            refuse([Problem((), "no detector", None, either, "name one of them")])
        if self.detector is not None and self.palette is not None:
            refuse(
                [Problem(("palette",), "a palette beside a Mask2Former", self.palette, either, "remove one")]
            )
        if self.detector is not None and self.colors is None:
            what, allowed = "a Mask2Former without a CLIP for colours", "a folder, 'asset:NAME' or hub id"
            fix = "set colors, such as openai/clip-vit-large-patch14"
            refuse([Problem(("detector",), what, self.detector, allowed, fix)])
        given = self.model_dump(include={"colors", "side", "threshold", "counting_threshold", "batch_size"})
        allowed, fix = "the default", "remove it, or name a Mask2Former in 'detector' in place of the palette"
        refuse(
            [
                Problem((key,), "a setting that the palette does not have", value, allowed, fix)
                for key, value in given.items()
                if self.detector is None and value != GenEvalSettings.model_fields[key].default
            ]
        )
        return self

    @property
    def judge(self) -> str:
        """The model or rule that judges, for the protocol of an evaluation."""
        return self.palette or f"{self.detector}, colours by {self.colors}"

    @property
    def models(self) -> Mapping[str, str]:
        """Setting -> path, asset or hub id of a model that judges."""
        named = {"palette": self.palette, "detector": self.detector, "colors": self.colors}
        return {key: name for key, name in named.items() if name is not None}

    def build(self, device: torch.device | str = "cpu") -> Reward:
        """Returns the reward; a palette judges on the CPU."""
        reward: Reward = load("flow_opd.rewards.geneval:build")(self, device)
        return reward


class OCRSettings(RewardSettings):
    """Text: 1 - edit distance / length of what an OCR engine reads."""

    name: Literal["ocr"] = "ocr"
    """Which reward this is."""
    reader: Literal["line", "page"] = "line"
    """'line' reads the one line of a small sign, 'page' finds and reads all text of a large picture."""
    alphabet: Name = string.ascii_lowercase
    """Line reader: letters that may be read, in lower case."""
    width: PositiveInt = 96
    """Line reader: pixels to which a picture is widened; words beyond 6 letters need 128 and more."""
    batch_size: PositiveInt = 32
    """Line reader: images that are read at once."""

    @property
    def judge(self) -> str:
        """The model or rule that judges, for the protocol of an evaluation."""
        return f"PP-OCR, {self.reader} reader"

    def build(self, device: torch.device | str = "cpu") -> Reward:
        """Returns the reward, which reads on the CPU."""
        reward: Reward = load("flow_opd.rewards.ocr:build")(self)
        return reward

    @model_validator(mode="after")
    def _belongs_to_reader(self) -> OCRSettings:
        given = self.model_dump(include={"alphabet", "width", "batch_size"})
        allowed, fix = "the default", "remove it, or set reader to 'line'"
        refuse(
            [
                Problem((key,), "a setting that the page reader does not have", value, allowed, fix)
                for key, value in given.items()
                if self.reader == "page" and value != OCRSettings.model_fields[key].default
            ]
        )
        return self


class DeQASettings(RewardSettings):
    """Quality without a reference, from 1 to 5."""

    name: Literal["deqa"] = "deqa"
    """Which reward this is."""
    path: Name
    """Folder of the quality model, or 'asset:NAME'."""

    @property
    def judge(self) -> str:
        """The model or rule that judges, for the protocol of an evaluation."""
        return self.path

    @property
    def models(self) -> Mapping[str, str]:
        """Setting -> path, asset or hub id of a model that judges."""
        return {"path": self.path}

    def build(self, device: torch.device | str = "cpu") -> Reward:
        """Returns the reward; its network computes on `device`."""
        reward: Reward = load("flow_opd.rewards.deqa:build")(self, device)
        return reward


class PickScoreSettings(RewardSettings):
    """Human preference: logit scale times cosine of image and text under CLIP."""

    name: Literal["pickscore"] = "pickscore"
    """Which reward this is."""
    path: Name
    """Folder of the CLIP model, 'asset:NAME' or hub id."""
    batch_size: PositiveInt = 64
    """Images of one pass."""

    @property
    def judge(self) -> str:
        """The model or rule that judges, for the protocol of an evaluation."""
        return self.path

    @property
    def models(self) -> Mapping[str, str]:
        """Setting -> path, asset or hub id of a model that judges."""
        return {"path": self.path}

    def build(self, device: torch.device | str = "cpu") -> Reward:
        """Returns the reward; its network computes on `device`."""
        reward: Reward = load("flow_opd.rewards.pickscore:build")(self, device)
        return reward
