"""The Mask2Former detector: instances by hand, colours by CLIP's own forward pass, a real tiny model."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, Mask2FormerForUniversalSegmentation

from errors import refused
from flow_opd.config.locations import asset_folder
from flow_opd.config.rewards import GenEvalSettings
from flow_opd.errors import RewardError
from flow_opd.miniature.preference import new_clip, save_clip
from flow_opd.miniature.vocabulary import build_tokenizer
from flow_opd.prompts.geneval import CLASSES
from flow_opd.prompts.geneval import COLORS as PROMPT_COLORS
from flow_opd.rewards.colors import BACKGROUND, COLORS, ColorClassifier, cut_out
from flow_opd.rewards.segmentation import NAMES, UNREAD, Input, Mask2FormerDetector, find_instances
from flow_opd.runs.identity import content, reward_files
from flow_opd.types import Prompt
from tiny_rewards import PROCESSOR, save_mask2former

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A real CLIP of the miniature's size with random weights and a tokenizer that knows GenEval's words."""
    folder = tmp_path_factory.mktemp("models") / "clip"
    words = ["a", "photo", "of", "object", "colored", *COLORS, *" ".join(CLASSES).split()]
    tokenizer = build_tokenizer(words)
    save_clip(new_clip(tokenizer, seed=3), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def mask2former_folder(tmp_path_factory):
    return save_mask2former(tmp_path_factory.mktemp("models") / "mask2former")


@pytest.fixture(scope="module")
def pictures():
    """Two vivid squares on grey each."""
    rng = np.random.default_rng(0)
    drawn = np.full((3, 96, 96, 3), 128, np.uint8)
    for row in range(3):
        for left in (8, 56):
            top = int(rng.integers(0, 64))
            drawn[row, top : top + 32, left : left + 32] = rng.integers(0, 256, 3)
    return drawn


def test_names_are_those_of_the_prompts():
    assert COLORS == PROMPT_COLORS
    assert set(NAMES.values()) < set(CLASSES)
    assert not set(NAMES) & set(CLASSES)


def logits(*probabilities):
    """Class logits whose softmax is given, one row a query."""
    return torch.tensor(probabilities).log()


def test_instances_by_hand():
    """Two queries on 2 x 3 pixels, two classes: every score, mask and box worked out."""
    classes = logits((0.7, 0.2, 0.1), (0.25, 0.35, 0.4))
    masks = torch.tensor([[[2.0, -1.0, -1.0], [1.0, -3.0, -3.0]], [[-9.0, 3.0, 0.5], [-9.0, -9.0, 0.0]]])
    sure = torch.tensor([2.0, 1.0, 3.0, 0.5]).sigmoid()
    first, second = float(sure[:2].mean()), float(sure[2:].mean())
    found = find_instances(classes, masks, seen=(2, 3), picture=(2, 3), floor=0.0)
    assert [one.label for one in found] == [0, 1, 0, 1]
    expected = [0.7 * first, 0.35 * second, 0.25 * second, 0.2 * first]
    assert [one.score for one in found] == pytest.approx(expected, abs=1e-5)
    assert found[0].mask.tolist() == [[True, False, False], [True, False, False]]
    assert found[1].mask.tolist() == [[False, True, True], [False, False, False]]  # a logit of 0 is outside
    assert [one.box() for one in found[:2]] == [(0, 0, 1, 2), (1, 0, 3, 1)]
    assert np.array_equal(found[2].mask, found[1].mask)
    kept = find_instances(classes, masks, seen=(2, 3), picture=(2, 3), floor=0.25 * second)
    assert [one.label for one in kept] == [0, 1]  # only scores *above* the floor


def test_the_mask_counts_before_the_floor_does():
    """A class of .9 in a mask of sigmoid(.1) = .525 scores .47."""
    classes, masks = logits((0.9, 0.1)), torch.full((1, 4, 4), 0.1)
    assert len(find_instances(classes, masks, seen=(4, 4), picture=(4, 4), floor=0.47)) == 1
    assert not find_instances(classes, masks, seen=(4, 4), picture=(4, 4), floor=0.48)
    assert not find_instances(classes, -masks, seen=(4, 4), picture=(4, 4), floor=0.0)
    assert not find_instances(classes, masks, seen=(4, 4), picture=(4, 4), floor=0.95)


def test_the_best_hundred_pairs_over_all_queries_and_classes():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(30, 6, generator=generator)  # 30 * 5 = 150 pairs
    found = find_instances(classes, torch.full((30, 2, 2), 40.0), seen=(2, 2), picture=(2, 2), floor=0.0)
    every = classes.softmax(-1)[:, :5].flatten().sort(descending=True).values
    assert [one.score for one in found] == pytest.approx(every[:100].tolist(), abs=1e-5)


def test_masks_are_brought_to_the_picture_by_way_of_the_input():
    """4 x 4 logits, input 8 x 8, picture 4 x 8: the left half is inside."""
    masks = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(4, 1)[None]
    (one,) = find_instances(logits((0.5, 0.5)), masks, seen=(8, 8), picture=(4, 8), floor=0.0)
    # Along x: 1, 1, 1, .5, -.5, -1, ...; so three sure columns of four, and one of half the logit.
    assert one.box() == (0, 0, 4, 4)
    certain = torch.tensor([1.0, 1.0, 1.0, 0.5]).sigmoid().mean()
    assert one.score == pytest.approx(0.5 * float(certain), abs=1e-5)
    # A detour that loses the middle: one pixel of input has the mean of the two middle logits.
    dot = torch.tensor([-9.0, 5.0, 5.0, -9.0]).repeat(4, 1)[None]
    (whole,) = find_instances(logits((0.5, 0.5)), dot, seen=(1, 1), picture=(4, 4), floor=0.0)
    assert whole.mask.all()


@pytest.mark.parametrize(
    ("size", "side", "picture", "expected"),
    [
        ({"shortest_edge": 800, "longest_edge": 1333}, None, (512, 512), (800, 800)),
        ({"shortest_edge": 800, "longest_edge": 1333}, None, (512, 1024), (672, 1344)),  # 666.5, 1333
        ({"height": 384, "width": 384}, None, (512, 1024), (384, 384)),
        ({"height": 384, "width": 384}, 800, (512, 512), (800, 800)),
        ({"height": 384, "width": 384}, 800, (100, 150), (800, 1216)),  # 1200
        (800, None, (1024, 1024), (800, 800)),
    ],
)
def test_the_size_of_the_input(size, side, picture, expected):
    config = {**PROCESSOR, "size": size, "max_size": 1333}
    assert Input.of(config, side).sides(picture) == expected


def test_the_input_by_hand():
    picture = np.full((1, 40, 50, 3), (0, 128, 255), np.uint8)
    pixels = Input.of({**PROCESSOR, "size": {"shortest_edge": 32, "longest_edge": 64}})(picture)
    assert pixels.shape == (1, 3, 32, 64)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert pixels[0, :, 5, 7].tolist() == pytest.approx(expected, abs=1e-5)


def test_cut_out_as_pillow_does_it():
    """GenEval's own way: composite on "#999", then crop to the box."""
    rng = np.random.default_rng(1)
    picture, mask = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), rng.random((20, 30)) < 0.5
    whole = Image.composite(
        Image.fromarray(picture), Image.new("RGB", (30, 20), color="#999"), Image.fromarray(mask)
    )
    box = (3.0, 4.0, 25.0, 11.0)
    assert np.array_equal(cut_out(picture, mask, box), np.asarray(whole.crop(box)))
    assert tuple(cut_out(picture, np.zeros_like(mask), box)[0, 0]) == BACKGROUND


@pytest.mark.slow
def test_colours_are_those_of_clips_own_forward_pass(clip_folder):
    """Sizes of all kinds; embeddings by CLIPModel.forward, templates and means written out anew."""
    rng = np.random.default_rng(2)
    crops = [
        np.full((*rng.integers(5, 60, 2), 3), rng.integers(0, 256, 3), dtype=np.uint8) for _ in range(40)
    ]
    labels = [("computer mouse", "dog")[number % 2] for number in range(40)]
    classifier = ColorClassifier(clip_folder, batch_size=7)
    model, clip = CLIPModel.from_pretrained(clip_folder).float().eval(), classifier.clip
    expected = []
    for crop, label in zip(crops, labels, strict=True):
        scores = []
        for color in (
            "red",
            "orange",
            "yellow",
            "green",
            "blue",
            "purple",
            "pink",
            "brown",
            "black",
            "white",
        ):
            texts = [f"a photo of a {color} {label}", f"a photo of a {color}-colored {label}"]
            tokens = clip.tokenizer(
                [*texts, f"a photo of a {color} object"], padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                output = model(pixel_values=clip.preprocess([crop]), **tokens)
            mean = output.text_embeds.mean(dim=0)
            scores.append(float(output.image_embeds[0] @ (mean / mean.norm())))
        expected.append(COLORS[int(np.argmax(scores))])
    assert classifier.name(crops, labels) == expected
    assert len(set(expected)) > 1
    assert classifier.name([], []) == []


class Asked(ColorClassifier):
    """A colour classifier that writes down what it was asked."""

    def __init__(self, path):
        super().__init__(path)
        self.asked = []

    def name(self, crops, labels):
        self.asked.append((list(crops), list(labels)))
        return super().name(crops, labels)


def test_a_real_model_finds_what_its_own_outputs_say(mask2former_folder, clip_folder, pictures):
    colors = Asked(clip_folder)
    detector = Mask2FormerDetector(mask2former_folder, colors, floor=0.1)
    assert detector.classes == ("person", "tv", "computer mouse", "dog")
    assert detector.colors == COLORS
    found = detector.detect(pictures)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(mask2former_folder).eval()
    with torch.no_grad():
        output = model(pixel_values=Input.of(PROCESSOR)(pictures))
    asked = list(colors.asked)
    for row, detections in enumerate(found):
        expected = find_instances(
            output.class_queries_logits[row],
            output.masks_queries_logits[row],
            seen=(64, 64),
            picture=(96, 96),
            floor=0.1,
        )
        assert len(expected) > 1
        assert [one.label for one in detections] == [detector.classes[one.label] for one in expected]
        assert [one.score for one in detections] == pytest.approx([one.score for one in expected], abs=1e-4)
        assert [one.box for one in detections] == [one.box() for one in expected]
        crops = [cut_out(pictures[row], one.mask, one.box()) for one in expected]
        labels = [one.label for one in detections]
        assert [one.color for one in detections] == colors.name(crops, labels)
        assert asked[row][1] == labels
        assert all(np.array_equal(*pair) for pair in zip(asked[row][0], crops, strict=True))
    alone = [detector.detect(pictures[row : row + 1])[0] for row in range(3)]
    assert [[one.box for one in each] for each in alone] == [[one.box for one in each] for each in found]
    assert detector.detect(pictures[:0], []) == []


def test_colours_are_asked_where_they_are_needed_alone(mask2former_folder, clip_folder, pictures):
    colors = Asked(clip_folder)
    detector = Mask2FormerDetector(mask2former_folder, colors, floor=0.1)
    label = detector.detect(pictures[:1])[0][0].label
    (found,) = detector.detect(pictures[:1], [{label}])
    assert set(colors.asked[-1][1]) == {label}
    assert {one.label for one in found} > {label}
    assert all((one.color is not None) == (one.label == label) for one in found)
    detector.detect(pictures[:1], [()])
    assert colors.asked[-1] == ([], [])
    one_by_one = Mask2FormerDetector(mask2former_folder, colors, floor=0.1, batch_size=1)
    last = one_by_one.detect(pictures, [(), (), {label}])
    assert [any(one.color for one in each) for each in last] == [False, False, True]


def settings(mask2former, clip, **others):
    return GenEvalSettings(name="geneval", detector=str(mask2former), colors=str(clip), **others)


def test_the_reward_from_its_settings(mask2former_folder, clip_folder, pictures):
    """Prompts that ask for exactly what the detector reports get 1, with another colour or number less."""
    images = torch.from_numpy(pictures[:1]).permute(0, 3, 1, 2).float() / 255
    spec = settings(mask2former_folder, clip_folder, threshold=0.1, counting_threshold=0.2)
    reward = spec.build()
    (found,) = reward.detector.detect(pictures[:1])
    label = found[0].label
    own = [one for one in found if one.label == label]
    counted = sum(one.score > 0.2 for one in own)
    assert 0 < counted < len(own)
    other = next(color for color in COLORS if color != own[0].color)
    need = {"class": label, "count": 1}
    metadata = [
        {"tag": "colors", "include": [{**need, "color": own[0].color}]},
        {"tag": "colors", "include": [{**need, "color": other}]},
        {"tag": "counting", "include": [{**need, "count": counted}]},
        {"tag": "two_object", "include": [{**need, "count": len(own)}]},
        {"tag": "counting", "include": [{**need, "count": len(own)}]},
    ]
    prompts = [Prompt("p", "composition", one) for one in metadata]
    scores = reward.score(images.expand(len(prompts), -1, -1, -1), prompts)
    assert scores.parts["strict"].tolist() == [1, 0, 1, 1, 0]
    assert scores.values[2:].tolist() == pytest.approx([1, 1, counted / len(own)])
    turned = settings(mask2former_folder, clip_folder, threshold=0.2, counting_threshold=0.1).build()
    scores = turned.score(images.expand(len(prompts), -1, -1, -1), prompts)
    assert scores.parts["strict"][2:].tolist() == [1, 0, 1]
    with refused(RewardError, value="cat"):
        reward.score(
            images,
            [Prompt("p", "c", {"tag": "single_object", "include": [{"class": "cat", "count": 1}]})],
        )


def test_a_side_of_its_own_changes_what_the_model_sees(mask2former_folder, clip_folder, pictures):
    small, large = (
        settings(mask2former_folder, clip_folder, side=side, threshold=0.1).build() for side in (None, 128)
    )
    assert [one.detector.floor for one in (small, large)] == [0.1, 0.1]
    scores = [[one.score for one in each.detector.detect(pictures)[0]] for each in (small, large)]
    assert scores[0] != pytest.approx(scores[1], abs=1e-6)


def test_a_run_knows_the_files_of_its_networks(mask2former_folder, clip_folder, tmp_path):
    files = reward_files([settings(mask2former_folder, clip_folder)])
    assert files == [mask2former_folder, clip_folder]
    before = content(files[0])
    assert content(save_mask2former(tmp_path / "other", seed=1)) != before
    assert reward_files([settings("facebook/mask2former-swin-small-coco-instance", clip_folder)]) == [
        clip_folder
    ]


def broken(source, path, what):
    shutil.copytree(source, path)
    if what == "no folder":
        shutil.rmtree(path)
    elif what == "truncated":
        weights = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif what == "deeper":
        config = json.loads((path / "config.json").read_text())
        config["encoder_layers"] = 2
        (path / "config.json").write_text(json.dumps(config))
    else:
        (path / what).unlink()
    return path


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("no folder", "the Mask2Former is no local path, and cannot be a hub id"),
        ("config.json", "no usable Mask2Former"),
        ("model.safetensors", "no usable Mask2Former"),
        ("preprocessor_config.json", "no usable Mask2Former"),
        ("truncated", "no usable Mask2Former"),
        ("deeper", "weights missing or of another shape"),
    ],
)
def test_broken_folders_raise(mask2former_folder, clip_folder, tmp_path, what, told):
    with pytest.raises(RewardError, match=told) as caught:
        Mask2FormerDetector(
            broken(mask2former_folder, tmp_path / "model", what), ColorClassifier(clip_folder)
        )
    assert "Allowed:" in str(caught.value)
    assert "To fix:" in str(caught.value)


def test_files_of_older_releases_load(mask2former_folder, clip_folder, tmp_path, pictures):
    """They lack weights that no forward pass reads, and have a number as size."""
    shutil.copytree(mask2former_folder, tmp_path / "older")
    file = tmp_path / "older" / "model.safetensors"
    weights = load_file(file)
    kept = {key: value for key, value in weights.items() if not any(part in key for part in UNREAD)}
    assert len(kept) == len(weights) - 3
    save_file(kept, file, metadata={"format": "pt"})
    processor = {**PROCESSOR, "size": 64, "max_size": 128}
    (tmp_path / "older" / "preprocessor_config.json").write_text(json.dumps(processor))
    old, new = (
        Mask2FormerDetector(folder, ColorClassifier(clip_folder), floor=0.1)
        for folder in (tmp_path / "older", mask2former_folder)
    )
    assert old.detect(pictures) == new.detect(pictures)


def test_a_folder_of_another_model_is_named(mask2former_folder, clip_folder):
    with refused(RewardError, names=["clip", "mask2former", "clip"]):
        Mask2FormerDetector(clip_folder, ColorClassifier(clip_folder))
    shipped = asset_folder() / "rewards" / "deqa"
    for folder in (mask2former_folder, shipped):
        with pytest.raises(RewardError, match="no usable CLIP for colours"):
            ColorClassifier(folder)


def test_an_unreachable_hub_is_told(monkeypatch, clip_folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused(RewardError, value="nobody/has-this-mask2former", names=["HF_HUB_OFFLINE"]):
        Mask2FormerDetector("nobody/has-this-mask2former", ColorClassifier(clip_folder))
