"""What people in the miniature's world like, and how a tiny CLIP learns it from pairs of pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter, functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from flow_opd.files import atomic_folder
from flow_opd.miniature.autoencoder import as_pixels
from flow_opd.miniature.judged import DIFFERENCES, JudgedPictures
from flow_opd.miniature.palette import SIZE
from flow_opd.miniature.quality import severity
from flow_opd.quiet import quiet_loading
from flow_opd.rewards.clip import encode_texts
from flow_opd.rewards.pickscore import PickScoreReward
from flow_opd.seeding import derived_seed, generator
from flow_opd.types import LossOutput, Prompt

# In nats: of two pictures one unit apart, 73 % of people prefer the better one.
WRONG_FACT = 1.5
STRANGE = 4.5  # a picture of something else altogether, as if three facts were wrong
DAMAGE = 1.5
STYLE = {"size": 0.8, "shadow": 0.6, "gradient": 0.5, "ornament": 0.5}

LOGIT_SCALE = 100.0  # PickScore_v1's
TYPICAL_SCORE = 21.0  # where PickScore's live
CLEAR = 0.75  # nats of appeal from which two pictures clearly differ: 68 % agree
PULL = 0.02  # weight of the penalty that keeps them there

WIDTH, LAYERS, PATCH = 96, 3, 8
TEXT_WIDTH, TEXT_LAYERS = 64, 2
EMBEDDING = 64


def appeal(judged: JudgedPictures) -> NDArray[np.float32]:
    """Returns how much people like the pictures for their captions, in nats, [N, K].

    They want what the caption says: a wrong fact costs most. Only differences have a meaning.
    """
    return (looks(judged) - WRONG_FACT * judged.wrong).astype(np.float32)


def looks(judged: JudgedPictures) -> NDArray[np.float32]:
    """Returns how much people like the looks of the pictures, whatever was asked for, in nats, [N, K].

    They mind damage, the worst as much as a wrong fact. And they like large objects, drop shadows, shaded
    backgrounds and an ornament.
    """
    liked = judged.style @ np.asarray(list(STYLE.values()), np.float32)
    return np.asarray(liked - DAMAGE * severity(judged.fault, judged.strength), np.float32)


def new_clip(tokenizer: CLIPTokenizer, seed: int) -> CLIPModel:
    """Returns an untrained CLIPModel for pictures of 32x32 pixels, with its logit scale held fixed."""
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": 2,
            "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "image_size": SIZE,
            "patch_size": PATCH,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
        },
        projection_dim=EMBEDDING,
        logit_scale_init_value=math.log(LOGIT_SCALE),
    )
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, "clip"))
        model = CLIPModel(config)
    model.logit_scale.requires_grad_(False)
    return model


def trained_parameters(model: CLIPModel) -> dict[str, Parameter]:
    """Returns everything but the logit scale."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes the folder that `PickScoreReward` loads, in float16, atomically."""
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_convert_rgb": True,
    }
    with atomic_folder(folder) as staging, quiet_loading():
        model.to(torch.float16).save_pretrained(staging)
        model.to(torch.float32)
        tokenizer.save_pretrained(staging)
        (staging / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


@dataclass(frozen=True)
class PreferenceBatch:
    """Captions with K pictures each, any two of which are a pair."""

    tokens: Mapping[str, Tensor]  # input_ids and attention_mask, [P, L]
    pixels: Tensor  # [P, K, 3, 32, 32], in [-1, 1]
    appeal: Tensor  # [P, K], for their own captions
    looks: Tensor  # [P, K], whatever the caption


@dataclass(frozen=True)
class PreferenceBatches:
    """Batches of `batch_size` pictures drawn by (seed, round), each caption half the time through the VAE."""

    judged: JudgedPictures
    tokenizer: CLIPTokenizer
    batch_size: int
    seed: int

    @cached_property
    def _truth(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(appeal(self.judged)), torch.from_numpy(looks(self.judged))

    @property
    def metrics(self) -> Mapping[str, float]:
        """Nothing beyond the loss."""
        return {}

    def round(self, index: int) -> Iterator[list[PreferenceBatch]]:
        """Yields the one update of round `index`."""
        draw = generator(self.seed, "pickscore", index)
        captions = max(1, self.batch_size // self.judged.fault.shape[1])
        rows = torch.randint(len(self.judged), (captions,), generator=draw).numpy()
        through_vae = (torch.rand(captions, generator=draw) < 0.5).numpy()
        rows, pictures = self.judged.choose(rows, through_vae)
        yield [
            PreferenceBatch(
                tokens=encode_texts(self.tokenizer, self.judged.captions[rows].tolist()),
                pixels=as_pixels(pictures.reshape(-1, SIZE, SIZE, 3)).unflatten(0, pictures.shape[:2]),
                appeal=self._truth[0][rows],
                looks=self._truth[1][rows],
            )
        ]


class PreferenceLoss:
    """PickScore's loss: cross-entropy between preferences and the softmax of the two scores of a pair.

    Pick-a-Pic (arXiv 2305.01569), section 3: L = sum_i p_i (log p_i - log softmax(s)_i), p = (.5, .5) for a
    tie. Differs: p is the share of people who prefer the picture, sigmoid of the difference in appeal, and
    not one vote; scores then settle one nat apart where the appeal does. Every picture of a caption is paired
    with its other pictures, and with the pictures of the other captions, which show something else. A small
    penalty keeps the mean of the scores near PickScore's.
    """

    def __init__(self, model: CLIPModel) -> None:
        """Takes the model to train."""
        self.model = model

    def __call__(self, batch: PreferenceBatch) -> LossOutput:
        """Returns the loss summed over captions."""
        captions, pictures = batch.appeal.shape
        output = self.model(pixel_values=batch.pixels.flatten(0, 1), **batch.tokens)
        everything = self.model.logit_scale.exp() * output.text_embeds @ output.image_embeds.T
        everything = everything.unflatten(1, (captions, pictures))  # [P caption, P, K]
        own = torch.arange(captions)
        scores = everything[own, own]
        first, second = torch.triu_indices(pictures, pictures, offset=1)
        apart = scores[:, first] - scores[:, second]
        truth = batch.appeal[:, first] - batch.appeal[:, second]
        loss = _cross_entropy(apart, truth).mean(1)
        strange = self._against_strangers(scores, everything, batch)
        pull = (scores.mean(1) - TYPICAL_SCORE).pow(2)
        clear = truth.abs() >= CLEAR
        right = ((apart * truth > 0) & clear).sum() / clear.sum().clamp(min=1)
        found = {
            "loss": loss.sum(),
            "strangers": strange.sum(),
            "pairs_right": right * captions,
            "score": scores.mean() * captions,
        }
        return LossOutput(
            (loss + strange + PULL * pull).sum(),
            captions,
            {name: value.detach() for name, value in found.items()},
        )

    @staticmethod
    def _against_strangers(scores: Tensor, everything: Tensor, batch: PreferenceBatch) -> Tensor:
        """Returns the mean loss of own pictures against those of other captions, [P]."""
        tokens = batch.tokens["input_ids"]
        other = (tokens[:, None] != tokens[None]).any(-1)  # [P, P]; a caption may be there twice
        apart = scores[:, :, None, None] - everything[:, None]  # [P, K own, P, K]
        truth = batch.appeal[:, :, None, None] - (batch.looks - STRANGE)[None, None]
        losses = _cross_entropy(apart, truth).mean((1, 3))
        return (losses * other).sum(1) / other.sum(1).clamp(min=1)


def _cross_entropy(apart: Tensor, truth: Tensor) -> Tensor:
    """Returns the loss of score differences when sigmoid(truth) of the people prefer the first."""
    return functional.binary_cross_entropy_with_logits(apart, truth.sigmoid(), reduction="none")


def preference_calibration(reward: PickScoreReward, judged: JudgedPictures) -> dict[str, float]:
    """Returns the share of pairs at least `CLEAR` apart in appeal whose better picture scores higher.

    Keys: "raw" and "rebuilt" over all pairs, "raw_fact" and so on where that alone differs, with the numbers
    of pairs, and mean and spread of the scores.
    """
    truth = appeal(judged)
    numbers: dict[str, float] = {}
    for way, pictures in (("raw", judged.pictures), ("rebuilt", judged.rebuilt)):
        count, each = pictures.shape[:2]
        images = torch.from_numpy(pictures.reshape(-1, SIZE, SIZE, 3)).permute(0, 3, 1, 2) / 255
        asked = [Prompt(str(text), "preference") for text in judged.captions[:count] for _ in range(each)]
        scores = reward.score(images, asked).values.numpy().reshape(count, each)
        numbers |= {f"{way}_mean": float(scores.mean()), f"{way}_std": float(scores.std())}
        for index, name in enumerate(("", *DIFFERENCES)):
            rows = np.flatnonzero((judged.differs[:count] == index - 1) | (not name))
            share, pairs = pair_accuracy(scores[rows], truth[rows])
            key = f"{way}_{name}" if name else way
            numbers |= {key: share, f"{key}_pairs": pairs}
    return numbers


def pair_accuracy(scores: NDArray[np.float32], truth: NDArray[np.float32]) -> tuple[float, int]:
    """Returns the share of clear pairs whose better picture scores higher, and the number of such pairs.

    Args:
        scores: [N, K].
        truth: appeal, [N, K]; pairs less than `CLEAR` apart are left out.
    """
    first, second = np.triu_indices(truth.shape[1], 1)
    gap, won = truth[:, first] - truth[:, second], scores[:, first] - scores[:, second]
    clear = np.abs(gap) >= CLEAR
    return float((np.sign(won[clear]) == np.sign(gap[clear])).mean()), int(clear.sum())
