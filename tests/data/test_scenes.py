"""The built-in scenes: the same everywhere, drawn as the facts say, and judged by what a caption states."""

import hashlib
import itertools

import numpy as np
import pytest

from nic_hf.data.scene_grammar import (
    COLOURS,
    OPPOSITES,
    SHAPES,
    SIZES,
    Description,
    caption_is_correct,
    explain_caption,
    parse_caption,
)
from nic_hf.data.scenes import (
    IMAGE_SIZE,
    RELATIONS,
    Scene,
    SceneObject,
    draw_scene,
    is_held_out,
    make_scene,
    make_scenes,
)

SPLITS = ("train", "validation", "test")
PAIR = Scene(
    objects=(
        SceneObject("small", "red", "circle", x=14, y=30, radius=7, fill=(216, 48, 48)),
        SceneObject("large", "blue", "square", x=46, y=32, radius=12, fill=(48, 96, 208)),
    ),
    relation="left",
    background=(240, 240, 240),
)
SINGLE = Scene(objects=PAIR.objects[:1], relation=None, background=PAIR.background)


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[tuple[Scene, list[str]]]]:
    return {split: [make_scene(split, index) for index in range(600)] for split in SPLITS}


def pixels_of(scene: Scene) -> np.ndarray:
    return np.asarray(draw_scene(scene)).astype(int)  # shape: (IMAGE_SIZE, IMAGE_SIZE, 3)


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, second = (make_scenes("train", 8).with_format("arrow")[:] for _ in range(2))
    assert first.equals(second)
    assert not first.equals(make_scenes("train", 8, seed=1).with_format("arrow")[:])


def test_scenes_are_the_same_on_every_platform() -> None:
    digest = hashlib.sha256()
    for split, index in itertools.product(SPLITS, range(20)):
        scene, captions = make_scene(split, index)
        digest.update(scene.to_json().encode() + "\n".join(captions).encode() + draw_scene(scene).tobytes())
    assert digest.hexdigest() == "eefe703650bb157cd6d19eacfa5804329364e28d83e964e4d21c85beca7bc7cc"


def test_a_scene_depends_on_neither_number_nor_order_of_the_others() -> None:
    few, many = make_scenes("validation", 3), make_scenes("validation", 9)
    assert few[:] == many.select(range(3))[:]
    assert make_scene("validation", 2)[0] == Scene.from_json(many[2]["scene"])


def test_splits_share_no_scene(scenes: dict[str, list[tuple[Scene, list[str]]]]) -> None:
    facts = [{scene.to_json() for scene, _ in scenes[split]} for split in SPLITS]
    assert all(not (one & other) for one, other in itertools.combinations(facts, 2))


def test_data_set_has_the_columns_of_captioned_photos() -> None:
    row = make_scenes("test", 2)[1]
    scene = Scene.from_json(row["scene"])
    assert row["image_id"] == "test-00001"
    assert len(row["captions"]) == len(set(row["captions"])) == 5
    assert np.array_equal(np.asarray(row["image"]), np.asarray(draw_scene(scene)))
    assert all(caption_is_correct(caption, scene) for caption in row["captions"])


@pytest.mark.parametrize(("split", "number", "message"), [("dev", 1, "'dev'"), ("train", 0, "num_scenes is 0")])
def test_a_wrong_request_is_named(split: str, number: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scenes(split, number)  # type: ignore[arg-type]


def test_every_caption_of_every_split_is_correct(scenes: dict[str, list[tuple[Scene, list[str]]]]) -> None:
    reasons = [explain_caption(c, scene) for split in SPLITS for scene, captions in scenes[split] for c in captions]
    assert set(reasons) == {None}


def test_test_combinations_are_never_trained_on(scenes: dict[str, list[tuple[Scene, list[str]]]]) -> None:
    shown = {split: {scene.combination for scene, _ in scenes[split]} for split in SPLITS}
    assert not shown["test"] & (shown["train"] | shown["validation"])
    assert all(is_held_out(combination) == (split == "test") for split in SPLITS for combination in shown[split])


def test_a_fifth_of_the_combinations_of_two_objects_is_held_out() -> None:
    kinds = list(itertools.product(COLOURS, SHAPES))
    pairs = [frozenset(chosen) for chosen in itertools.combinations(kinds, 2)]
    assert 0.18 < sum(map(is_held_out, pairs)) / len(pairs) < 0.22
    # Each kind is trained on alone, and beside most others.
    assert not any(is_held_out(frozenset({kind})) for kind in kinds)
    for kind in kinds:
        assert sum(kind in pair and not is_held_out(pair) for pair in pairs) > len(kinds) / 2


def test_every_word_of_the_test_captions_is_trained_on(scenes: dict[str, list[tuple[Scene, list[str]]]]) -> None:
    words = {
        split: {word for _, captions in scenes[split] for caption in captions for word in caption.split()}
        for split in SPLITS
    }
    assert words["test"] <= words["train"]
    assert {*SIZES, *COLOURS, *SHAPES, *OPPOSITES} <= words["train"]


def test_objects_have_their_colour_at_their_centre(scenes: dict[str, list[tuple[Scene, list[str]]]]) -> None:
    for scene, _ in scenes["train"][:200]:
        pixels = pixels_of(scene)
        for each in scene.objects:
            assert tuple(pixels[each.y, each.x]) == each.fill


def test_objects_lie_inside_the_picture_and_apart(scenes: dict[str, list[tuple[Scene, list[str]]]]) -> None:
    for scene, _ in scenes["train"] + scenes["test"]:
        boxes = [(e.x - e.radius, e.y - e.radius, e.x + e.radius, e.y + e.radius) for e in scene.objects]
        assert all(low > 0 and high < IMAGE_SIZE - 1 for box in boxes for low, high in (box[:2], box[2:]))
        for one, other in itertools.combinations(boxes, 2):
            assert one[2] < other[0] or one[3] < other[1]
        edges = pixels_of(scene)
        for border in (edges[0], edges[-1], edges[:, 0], edges[:, -1]):
            assert (border == scene.background).all()


def test_pixels_show_the_relation(scenes: dict[str, list[tuple[Scene, list[str]]]]) -> None:
    pairs = [scene for scene, _ in scenes["test"] if scene.relation is not None]
    assert {scene.relation for scene in pairs} == set(RELATIONS)
    for scene in pairs:
        pixels = pixels_of(scene)
        # Where each fill colour is found, as (row, column).
        (top, left), (bottom, right) = (
            np.argwhere((pixels == each.fill).all(axis=-1)).mean(axis=0) for each in scene.objects
        )
        across, down = right - left, bottom - top
        assert (across > 2 * abs(down)) if scene.relation == "left" else (down > 2 * abs(across))


def test_large_objects_cover_more_pixels_than_small_ones(scenes: dict[str, list[tuple[Scene, list[str]]]]) -> None:
    covered: dict[tuple[str, str], list[int]] = {}
    for scene, _ in scenes["train"]:
        if scene.relation is None:
            each = scene.objects[0]
            number = int((pixels_of(scene) != scene.background).any(axis=-1).sum())
            covered.setdefault((each.shape, each.size), []).append(number)
    assert len(covered) == len(SHAPES) * len(SIZES)
    assert all(min(covered[shape, "large"]) > 1.5 * max(covered[shape, "small"]) for shape in SHAPES)


@pytest.mark.parametrize(
    "caption",
    [
        "a small red circle to the left of a large blue square",
        "a large blue square to the right of a small red circle",
        "there is a red circle to the left of a blue square",
        "a large blue square with a small red circle on its left",
        "a red circle and to its right a large blue square",
        "a blue square on the right and a small red circle on the left",
    ],
)
def test_a_true_sentence_is_correct_whichever_object_it_names_first(caption: str) -> None:
    assert explain_caption(caption, PAIR) is None


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("a small blue circle to the left of a large red square", "the scene has no small blue circle"),
        ("a small red circle to the left of a small blue square", "the scene has no small blue square"),
        ("a red circle to the left of a blue star", "the scene has no blue star"),
        ("a red circle to the right of a blue square", "the red circle is to the left of the blue square"),
        ("a blue square above a red circle", "the blue square is to the right of the red circle"),
        ("a red circle to the left of a red circle", "the red circle is named twice"),
        ("a small red circle", "objects named: 1, objects in the scene: 2"),
        ("a red circle and a blue square", "not a sentence of the grammar: 'a red circle and a blue square'"),
        ("a red circle on the left and a blue square on the left", "not a sentence of the grammar: "),
        ("a red zebra to the left of a blue square", "not a sentence of the grammar: "),
        ("a red circle to the left of a blue square above", "not a sentence of the grammar: "),
        ("", "not a sentence of the grammar: ''"),
    ],
)
def test_a_wrong_caption_is_explained(caption: str, reason: str) -> None:
    explanation = explain_caption(caption, PAIR)
    assert explanation is not None
    assert explanation.startswith(reason)
    assert not caption_is_correct(caption, PAIR)


def test_a_second_object_must_be_there() -> None:
    assert caption_is_correct("nothing but a red circle", SINGLE)
    assert (
        explain_caption("a red circle above a small red circle", SINGLE) == "objects named: 2, objects in the scene: 1"
    )


def test_one_changed_fact_makes_any_caption_wrong(scenes: dict[str, list[tuple[Scene, list[str]]]]) -> None:
    """Each word that states a fact, exchanged for another of its kind, spoils the caption."""
    families = (SIZES, COLOURS, SHAPES, ("left", "right"), ("above", "below"), ("top", "bottom"))
    for scene, captions in scenes["test"][:200]:
        for words in (caption.split() for caption in captions):
            for place, word in enumerate(words):
                for other in next((family for family in families if word in family), ()):
                    changed = " ".join([*words[:place], other, *words[place + 1 :]])
                    assert caption_is_correct(changed, scene) == (other == word), changed


def test_every_shortened_caption_of_a_pair_is_wrong(scenes: dict[str, list[tuple[Scene, list[str]]]]) -> None:
    for scene, captions in scenes["train"][:100]:
        if scene.relation is not None:
            for words in (caption.split() for caption in captions):
                assert not any(caption_is_correct(" ".join(words[:end]), scene) for end in range(len(words)))


def test_parser_returns_what_is_stated() -> None:
    statement = parse_caption("a small red circle above a blue star")
    assert statement is not None
    assert statement.first == Description("red", "circle", "small")
    assert (statement.relation, statement.second) == ("above", Description("blue", "star", None))
