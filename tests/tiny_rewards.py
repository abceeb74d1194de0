"""Reward models of the smallest size with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

LABELS = ("person", "tvmonitor", "mouse", "dog")
PROCESSOR = {
    "size": {"shortest_edge": 64, "longest_edge": 128},
    "size_divisor": 32,
    "resample": 2,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def save_mask2former(folder: Path, seed: int = 0) -> Path:
    """A real Mask2Former of the smallest size with random weights, and its preprocessing."""
    swin = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin.to_dict(),
        feature_size=32,  # the least that its group norms allow
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=16,
        num_attention_heads=2,
        num_queries=6,
        id2label=dict(enumerate(LABELS)),
        label2id={name: number for number, name in enumerate(LABELS)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Mask2FormerForUniversalSegmentation(config)
    # Random weights hardly decide; these do, so that scores and masks differ from query to query.
    embedder = model.model.transformer_module.decoder.mask_predictor.mask_embedder
    with torch.no_grad():
        model.class_predictor.weight *= 8
        list(embedder.parameters())[-2].mul_(8)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder
