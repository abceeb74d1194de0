"""GenEval's rules on hand-made detections, and the calibration of the palette detector on clean renders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import flow_opd.miniature
from errors import refused
from flow_opd.errors import RewardError
from flow_opd.miniature.captions import TAGS, caption, misread
from flow_opd.miniature.prompts import every
from flow_opd.miniature.renderer import render
from flow_opd.miniature.scene import scene_for
from flow_opd.rewards.detectors import Detection, PaletteDetector
from flow_opd.rewards.geneval import GenEvalReward, relations
from flow_opd.types import Prompt

PALETTE = Path(flow_opd.miniature.__file__).parent / "assets" / "rewards" / "palette.json"
PLACES = {
    "west": (2, 12, 8, 18),
    "east": (24, 12, 30, 18),
    "north": (12, 2, 18, 8),
    "south": (12, 24, 18, 30),
}


class Given:
    """A detector that has been told what is there."""

    classes = ("circle", "square", "triangle")
    colors = ("red", "blue")

    def __init__(self, *detections: Detection) -> None:
        self.detections = list(detections)

    def detect(self, images, colored=None):
        return [self.detections for _ in images]


def seen(label, place="west", color="red", score=0.9):
    return Detection(label, color, PLACES[place], score)


def judge(detections, metadata, **options):
    reward = GenEvalReward(Given(*detections), **options)
    scores = reward.score(
        torch.zeros(1, 3, 32, 32), [Prompt("p", "composition", {"tag": "colors", **metadata})]
    )
    assert scores.valid.tolist() == [True]
    assert torch.equal(scores.values, scores.parts["continuous"])
    return scores.parts["strict"].item(), pytest.approx(scores.values.item())


CIRCLE = {"class": "circle", "count": 1}
LEFT = {"include": [{"class": "square", "count": 1}, {**CIRCLE, "position": ["left of", 0]}]}
THREE = {"include": [{"class": "circle", "count": 3}], "exclude": [{"class": "circle", "count": 4}]}


@pytest.mark.parametrize(
    ("found", "strict", "continuous"),
    [
        (0, 0, 0.0),
        (1, 0, 1 / 3),
        (2, 0, 2 / 3),
        (3, 1, 1.0),
        (4, 0, 2 / 3),
        (5, 0, 1 / 3),
        (6, 0, 0.0),
        (9, 0, 0.0),
    ],
)
def test_counting(found, strict, continuous):
    assert judge([seen("circle")] * found + [seen("square")], THREE) == (strict, continuous)


@pytest.mark.parametrize(
    ("found", "unclamped"), [(0, 0.0), (1, 1.0), (2, 0.0), (3, -1.0), (5, -3.0), (16, -14.0), (20, -14.0)]
)
def test_unclamped_counting_tells_two_from_five(found, unclamped):
    """One is asked for; 1 - |1 - found| / 1, and at most 16 objects of a class are counted."""
    reward = GenEvalReward(Given(*[seen("circle")] * found), clamped=False)
    prompt = Prompt("p", "composition", {"tag": "single_object", "include": [CIRCLE]})
    scores = reward.score(torch.zeros(1, 3, 32, 32), [prompt])
    assert scores.values.tolist() == [unclamped]
    assert scores.scale == reward.scale == (-14.0, 1.0)
    assert scores.parts["continuous"].tolist() == [max(0.0, unclamped)], "reports keep the clamped one"


def test_unclamped_credits_are_a_mean_with_the_others():
    # Three squares where one is asked for: -1; the circle is there, but not left of the right number: 1, 0.
    reward = GenEvalReward(Given(seen("circle", "west"), *[seen("square", "east")] * 3), clamped=False)
    scores = reward.score(
        torch.zeros(1, 3, 32, 32), [Prompt("p", "composition", {"tag": "position", **LEFT})]
    )
    assert scores.values.tolist() == [(-1 + 1 + 0) / 3]


def test_without_exclude_only_the_best_boxes_count():
    best, second = seen("circle", color="red", score=0.9), seen("circle", color="blue", score=0.5)
    red, blue = ({"include": [{**CIRCLE, "color": color}]} for color in ("red", "blue"))
    # One too many: the number gives 1 - 1/1 = 0, and so does the colour.
    assert judge([second, best], red) == (1, 0.0)
    assert judge([second, best], blue) == (0, 0.0)


def test_colours():
    two = {"include": [{"class": "circle", "count": 2, "color": "red"}]}
    assert judge([seen("circle"), seen("circle")], two) == (1, 1.0)
    assert judge([seen("circle"), seen("circle", color="blue")], two) == (0, (1 + 1 / 2) / 2)
    assert judge([seen("circle"), seen("circle", color=None)], two) == (0, (1 + 1 / 2) / 2)
    assert judge([seen("circle")], two) == (0, (1 / 2 + 0) / 2)


def test_two_coloured_objects():
    pair = {"include": [{**CIRCLE, "color": "red"}, {"class": "square", "count": 1, "color": "blue"}]}
    assert judge([seen("circle"), seen("square", color="blue")], pair) == (1, 1.0)
    assert judge([seen("circle", color="blue"), seen("square")], pair) == (0, 0.5)
    assert judge([seen("circle")], pair) == (0, 0.5)


def test_positions():
    assert judge([seen("circle", "west"), seen("square", "east")], LEFT) == (1, 1.0)
    # Numbers right (1, 1), position wrong (0 once): the mean of three.
    assert judge([seen("circle", "east"), seen("square", "west")], LEFT) == (0, 2 / 3)
    assert judge([seen("circle", "west")], LEFT) == (0, (0 + 1 + 0) / 3)
    assert judge([seen("square", "east")], LEFT) == (0, (1 + 0 + 0) / 3)
    # A second square: GenEval takes the best one, the training reward wants the exact number.
    assert judge(
        [seen("circle", "west"), seen("square", "east"), seen("square", "north", score=0.5)], LEFT
    ) == (
        1,
        (0 + 1 + 0) / 3,
    )


def test_all_pairs_must_stand_in_the_relation():
    two = {"include": [{"class": "square", "count": 2}, {**CIRCLE, "position": ["left of", 0]}]}
    assert judge([seen("circle", "west"), seen("square", "east"), seen("square", "east")], two) == (1, 1.0)
    assert judge([seen("circle", "north"), seen("square", "east"), seen("square", "west")], two) == (0, 2 / 3)


def test_a_target_of_the_wrong_colour_is_no_target():
    colored = {"include": [{"class": "square", "count": 1, "color": "blue"}, LEFT["include"][1]]}
    assert judge([seen("circle", "west"), seen("square", "east", "blue")], colored) == (1, 1.0)
    assert judge([seen("circle", "west"), seen("square", "east", "red")], colored) == (0, (1 + 0 + 1 + 0) / 4)


def box(x, y, side=2.0):
    return Detection("circle", None, (x - side / 2, y - side / 2, x + side / 2, y + side / 2), 1.0)


def test_relations_shrink_the_offset_but_not_its_length():
    assert relations(box(0, 10), box(10, 10)) == {"left of"}
    assert relations(box(20, 10), box(10, 10)) == {"right of"}
    assert relations(box(10, 0), box(10, 10)) == {"above"}
    assert relations(box(10, 20), box(10, 10)) == {"below"}
    # Sides 2 + 2 shrink each axis by .4: (10 - .4) / sqrt(200) = .679 on both.
    assert relations(box(0, 0), box(10, 10)) == {"left of", "above"}
    # Sides 15 + 15 shrink by 3: (10 - 3) / sqrt(200) = .495; divided by its own length it would be .707.
    assert relations(box(0, 0, 15), box(10, 10, 15)) == set()
    assert relations(box(0, 0, 15), box(10, 10, 14)) == {"left of", "above"}  # (10 - 2.9) / 14.14 = .502
    assert relations(box(0, 0), box(0.3, 0.3)) == set()
    assert relations(box(5, 5), box(5, 5)) == set()


def test_thresholds_and_the_limit_per_class():
    assert judge([seen("circle", score=0.3)], {"include": [CIRCLE]}, threshold=0.3) == (0, 0.0)
    assert judge([seen("circle", score=0.31)], {"include": [CIRCLE]}, threshold=0.3) == (1, 1.0)
    counting = {"tag": "counting", "include": [CIRCLE]}
    assert judge([seen("circle", score=0.8)], counting, threshold=0.3, counting_threshold=0.9) == (0, 0.0)
    # 40 boxes are cut to 16, so 1 - |20 - 16| / 20 remains.
    assert judge([seen("circle")] * 40, {"include": [{"class": "circle", "count": 20}]}) == (0, 0.8)


def test_prompts_of_other_tasks_are_not_judged():
    reward = GenEvalReward(Given(seen("circle")))
    prompts = [
        Prompt("sign", "text", {"text": "bed"}),
        Prompt("photo", "composition", {"tag": "single_object", "include": [CIRCLE]}),
        Prompt("scene", "quality", {"include": [CIRCLE], "background": "sky"}),
    ]
    scores = reward.score(torch.zeros(3, 3, 32, 32), prompts)
    assert scores.valid.tolist() == [False, True, False]
    assert scores.values.tolist() == [0, 1, 0]
    assert not reward.score(torch.zeros(1, 3, 32, 32), prompts[:1]).valid.any()
    with refused(RewardError, value=(2, 3)):
        reward.score(torch.zeros(2, 3, 32, 32), prompts)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tag": "colrs"}, "Did you mean 'colors'"),
        ({"include": []}, "unusable include"),
        ({"include": ["circle"]}, "unusable requirement"),
        ({"include": [{"class": "cirle", "count": 1}]}, "Did you mean 'circle'"),
        ({"include": [{"class": "circle"}]}, "unusable count .*: None"),
        ({"include": [{"class": "circle", "count": 0}]}, "unusable count .*: 0"),
        ({"include": [{"class": "circle", "count": True}]}, "unusable count .*: True"),
        ({"include": [{**CIRCLE, "color": "blu"}]}, "Did you mean 'blue'"),
        ({"include": [CIRCLE, {**CIRCLE, "position": ["left", 0]}]}, "Did you mean 'left of'"),
        ({"include": [CIRCLE, {**CIRCLE, "position": ["left of", 1]}]}, "an earlier entry"),
        ({"include": [CIRCLE, {**CIRCLE, "position": "left of"}]}, "unusable position"),
        ({"include": [CIRCLE], "exclude": [{"class": "circle", "count": "4"}]}, "unusable count .*: '4'"),
    ],
)
def test_malformed_metadata_raise(metadata, message):
    with pytest.raises(RewardError, match=message):
        judge([], {"include": [CIRCLE], **metadata})


def test_images_that_are_not_finite_raise():
    reward = GenEvalReward(Given())
    with refused(RewardError, value="NaN or infinity"):
        reward.score(
            torch.full((1, 3, 32, 32), torch.nan),
            [Prompt("p", "composition", {"tag": "colors", "include": [CIRCLE]})],
        )


def test_unusable_palettes_raise(tmp_path):
    palette = json.loads(PALETTE.read_text())
    del palette["contrast"]
    (tmp_path / "lacking.json").write_text(json.dumps(palette))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "alien.json").write_text(json.dumps({**json.loads(PALETTE.read_text()), "classes": ["dog"]}))
    for name in ("lacking", "broken", "alien", "missing"):
        with pytest.raises(RewardError, match="unusable palette"):
            PaletteDetector(tmp_path / f"{name}.json")


@pytest.fixture(scope="module")
def renders():
    """600 clean renders, 100 of each tag in all styles, with a right and a wrong prompt for each."""
    rng = np.random.default_rng(0)
    right, wrong, images = [], [], []
    for index in range(600):
        pool = every(TAGS[index % 6])
        metadata = pool[int(rng.integers(len(pool)))]
        changed = misread(metadata, rng)
        right.append(Prompt(caption(metadata), "composition", metadata))
        wrong.append(Prompt(caption(changed), "composition", changed))
        images.append(render(scene_for(metadata, rng)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255, right, wrong


@pytest.mark.slow
def test_calibration_on_clean_renders(renders):
    images, right, wrong = renders
    reward = GenEvalReward(PaletteDetector(PALETTE))
    accepted, refused = reward.score(images, right), reward.score(images, wrong)
    assert accepted.parts["strict"].mean() >= 0.99
    assert 1 - refused.parts["strict"].mean() >= 0.99
    assert accepted.values.mean() >= 0.99
    assert refused.values.max() < 1


@pytest.mark.slow
def test_calibration_survives_the_blur_of_an_autoencoder(renders):
    from scipy.ndimage import gaussian_filter

    images, right, wrong = renders
    soft = torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, 0.5, 0.5)))
    soft = soft + torch.randn(soft.shape, generator=torch.Generator().manual_seed(0)) * 3 / 255
    reward = GenEvalReward(PaletteDetector(PALETTE))
    assert reward.score(soft, right).parts["strict"].mean() >= 0.97
    assert 1 - reward.score(soft, wrong).parts["strict"].mean() >= 0.97


def test_nothing_is_found_where_nothing_is():
    detector = PaletteDetector(PALETTE)
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    flat = np.full((1, 32, 32, 3), 128, np.uint8)
    vivid = np.full((1, 32, 32, 3), (222, 38, 48), np.uint8)
    assert not any(detector.detect(np.concatenate([noise, flat])))
    assert len(detector.detect(vivid)[0]) <= 1


@pytest.mark.parametrize(("side", "found"), [(3, 0), (4, 0), (6, 1), (12, 1)])
def test_specks_are_no_objects(side, found):
    image = np.full((1, 32, 32, 3), (186, 217, 240), np.uint8)
    image[0, 10 : 10 + side, 8 : 8 + side] = (222, 38, 48)
    detections = PaletteDetector(PALETTE).detect(image)[0]
    assert len(detections) == found
    if found:
        assert (detections[0].label, detections[0].color) == ("square", "red")
        assert detections[0].box == pytest.approx((8, 10, 8 + side, 10 + side), abs=0.01)
