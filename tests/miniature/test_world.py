"""The world draws what its captions say, errs in the stated shares, and keeps test prompts unseen."""

import json
from pathlib import Path

import numpy as np
import pytest

import flow_opd.miniature
from errors import refused
from flow_opd.errors import DataError
from flow_opd.miniature.captions import COMPOSITION, TAGS, TASKS, TEXT, caption, misread, words
from flow_opd.miniature.dataset import dataset, training_sample
from flow_opd.miniature.degradations import KINDS, degrade
from flow_opd.miniature.palette import BACKGROUNDS, COLORS, LETTERS, allowed, detector_palette
from flow_opd.miniature.prompts import REPEATED_TAGS, every, prompts
from flow_opd.miniature.renderer import render
from flow_opd.miniature.scene import SIDES, Style, scene_for

DOMAINS = (*TAGS, *TASKS[1:])
MAX_TOKENS = 14  # words of the longest caption
SMALLEST_GAP = 2.0  # pixels between two things
ORNAMENT_BAND = 6.0  # pixels at the top that things keep free


@pytest.fixture(scope="module")
def samples():
    return dataset(seed=3, start=0, count=3000)


def test_samples_depend_on_seed_and_index_only(samples):
    image, text, facts = training_sample(3, 1234)
    assert np.array_equal(image, samples.images[1234])
    assert (text, facts) == (samples.captions[1234], samples.facts[1234])
    assert not np.array_equal(image, training_sample(4, 1234)[0])


def test_number_of_workers_changes_nothing(samples):
    split = dataset(seed=3, start=100, count=41, workers=2)
    assert np.array_equal(split.images, samples.images[100:141])
    assert split.captions == samples.captions[100:141]
    assert split.facts == samples.facts[100:141]


def test_shares_of_noise_and_domains(samples):
    facts = samples.facts
    wrong = np.mean([not fact.caption_right for fact in facts])
    degraded = np.mean([fact.degradation is not None for fact in facts])
    # Four standard deviations of 3000 draws are about .035.
    assert wrong == pytest.approx(1 / 3, abs=0.035)
    assert degraded == pytest.approx(1 / 2, abs=0.037)
    shares = [np.mean([fact.task == task for fact in facts]) for task in TASKS]
    assert shares == pytest.approx([0.5, 0.16, 0.17, 0.17], abs=0.037)
    assert {fact.degradation for fact in facts} == {None, *KINDS}
    assert all((fact.strength > 0) == (fact.degradation is not None) for fact in facts)


def test_a_caption_is_wrong_exactly_where_the_facts_say_so(samples):
    for text, fact in zip(samples.captions, samples.facts, strict=True):
        assert (text == caption(fact.metadata)) == fact.caption_right


def test_captions_are_short_and_use_few_words(samples):
    known = {word for domain in DOMAINS for one in every(domain) for word in words(caption(one))}
    assert len(known) <= 70
    assert all(len(words(caption(one))) <= MAX_TOKENS for domain in DOMAINS for one in every(domain))
    for text in samples.captions:
        assert len(words(text)) <= MAX_TOKENS
        assert set(words(text)) <= known


def test_words_of_a_sign_count_letter_by_letter():
    assert words('a sign that says "bth"') == ["a", "sign", "that", "says", '"', "b", "t", "h", '"']


@pytest.mark.parametrize("task", TASKS)
def test_train_and_test_prompts_are_disjoint(task):
    train, test = prompts(task, "train", 1500, 0), prompts(task, "test", 1500, 1)
    large = [
        {one.text for one in part if one.metadata.get("tag") not in REPEATED_TAGS} for part in (train, test)
    ]
    assert large[0]
    assert large[1]
    assert not large[0] & large[1]
    if task != COMPOSITION:
        assert large[0] | large[1] == {caption(one) for one in every(task)}


def test_mirrored_prompts_stay_in_one_split():
    test = {one.text for one in prompts(COMPOSITION, "test", 1500, 0)}
    train = {one.text for one in prompts(COMPOSITION, "train", 1500, 0)}
    mirrored = [text for text in test if " left of " in text]
    assert mirrored
    for text in mirrored:
        subject, target = text.removeprefix("a photo of ").split(" left of ")
        assert f"a photo of {target} right of {subject}" in test - train


def test_prompts_follow_genevals_schema_and_are_reproducible():
    drawn = prompts(COMPOSITION, "train", 60, 7)
    assert drawn == prompts(COMPOSITION, "train", 60, 7)
    assert drawn != prompts(COMPOSITION, "train", 60, 8)
    assert {one.metadata["tag"] for one in drawn} == set(TAGS)
    for one in drawn:
        assert one.text == caption(one.metadata)
        assert one.text.startswith("a photo of a") or one.metadata["tag"] == "counting"
        assert ("exclude" in one.metadata) == (one.metadata["tag"] == "counting")
    assert {len(one.metadata["text"]) for one in prompts(TEXT, "test", 50, 0)} == {3}


def test_known_captions():
    texts = {domain: {caption(one) for one in every(domain)} for domain in DOMAINS}
    assert "a photo of three circles" in texts["counting"]
    assert "a photo of an orange square" in texts["colors"]
    assert "a photo of a circle left of a square" in texts["position"]
    assert "a photo of a red circle and a blue square" in texts["color_attr"]
    assert "a painting of two red circles in the desert and a cloud" in texts["preference"]
    assert "a blue square in the sky" in texts["quality"]
    assert "a blue square at night" not in texts["quality"]
    assert len(texts[TEXT]) == len(LETTERS) ** 3


def test_a_prompt_is_not_repeated_before_all_are_used():
    assert len({one.text for one in prompts(TEXT, "test", 300, 5)}) == 300


@pytest.mark.parametrize(
    ("task", "split", "hint"), [("compositon", "train", "composition"), ("text", "tests", "test")]
)
def test_unknown_names_are_answered_with_the_nearest(task, split, hint):
    with refused(DataError, names=[f"'{hint}'"]):
        prompts(task, split, 1, 0)


@pytest.mark.parametrize("domain", DOMAINS)
def test_scenes_show_what_was_asked_and_keep_their_distance(domain):
    rng = np.random.default_rng(0)
    pool = every(domain)
    for metadata in (pool[index] for index in rng.integers(len(pool), size=40)):
        scene = scene_for(metadata, rng)
        if domain == TEXT:
            assert scene.sign is not None
            assert scene.sign.word == metadata["text"]
            continue
        shown = [(thing.shape, thing.color) for thing in scene.things]
        asked = [
            (entry["class"], entry.get("color"))
            for entry in metadata["include"]
            for _ in range(entry["count"])
        ]
        assert all(
            one[0] == two[0] and two[1] in (None, one[1]) for one, two in zip(shown, asked, strict=True)
        )
        assert metadata.get("background", scene.background) == scene.background
        assert metadata.get("ornament", scene.ornament) == scene.ornament
        assert all(allowed(thing.color, scene.background) for thing in scene.things)
        for index, one in enumerate(scene.things):
            assert one.side / 2 < min(one.x, one.y, 32 - one.x, 32 - one.y)
            assert one.side in SIDES[len(scene.things)]
            assert one.y - one.side / 2 >= ORNAMENT_BAND
            for two in scene.things[:index]:
                apart = max(abs(one.x - two.x), abs(one.y - two.y)) - (one.side + two.side) / 2
                assert apart >= SMALLEST_GAP - 1e-9


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_misreading_is_never_the_truth(domain):
    rng = np.random.default_rng(1)
    pool = every(domain)
    for metadata in (pool[index] for index in rng.integers(len(pool), size=60)):
        before = json.dumps(metadata)
        assert caption(misread(metadata, rng)) != caption(metadata)
        assert json.dumps(metadata) == before


def test_style_traits_show():
    metadata = every("quality")[0]

    def drawn(**changed):
        traits = {"size": 0.5, "shadow": False, "gradient": 0.0, "ornament": False} | changed
        return render(scene_for(metadata, np.random.default_rng(2), Style(**traits))).astype(int)

    plain = drawn()
    assert plain[:, 0].std(axis=0).max() == 0  # flat along the left edge
    assert drawn(gradient=1.0)[:, 0].std(axis=0).max() > 10
    for changed in ({"shadow": True}, {"size": 1.0}, {"ornament": True}):
        assert (np.abs(drawn(**changed) - plain) > 8).sum() > 30


def test_degradations_grow_with_strength():
    image = render(scene_for({"text": "hex"}, np.random.default_rng(0), Style(0.5, True, 0.5, False))).astype(
        float
    )
    for kind in KINDS:
        errors = [
            np.abs(degrade(image.astype(np.uint8), kind, strength, np.random.default_rng(0)) - image).mean()
            for strength in (0.1, 0.5, 1.0)
        ]
        assert 0 < errors[0] < errors[1] < errors[2]
    with pytest.raises(ValueError, match="unknown degradation"):
        degrade(image.astype(np.uint8), "rain", 0.5, np.random.default_rng(0))


def test_every_colour_stands_out_somewhere_and_one_background_takes_all():
    assert any(all(allowed(color, place) for color in COLORS) for place in BACKGROUNDS)
    assert all(sum(allowed(color, place) for place in BACKGROUNDS) >= 2 for color in COLORS)


def test_shipped_palette_is_the_one_in_the_code():
    shipped = Path(flow_opd.miniature.__file__).parent / "assets" / "rewards" / "palette.json"
    assert json.loads(shipped.read_text(encoding="utf-8")) == json.loads(json.dumps(detector_palette()))
