"""Toy cars: pictures, captions and labels that depend on (seed, index) alone and agree."""

import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from diffusion_utils.data.toy_cars import BODIES, COLOURS, DIRECTIONS, TIMES, attributes, caption, draw, load

CHOICES = {"body": BODIES, "colour": COLOURS, "direction": DIRECTIONS, "time": TIMES}

# What these words mean to a reader, written down apart from the paints of the module.
PLAIN = {
    "red": (220, 30, 30),
    "orange": (245, 130, 20),
    "yellow": (245, 215, 40),
    "green": (40, 160, 60),
    "blue": (30, 90, 220),
    "purple": (140, 50, 180),
    "white": (240, 240, 240),
    "black": (25, 25, 25),
}


def painted(index, **overrides):
    """Where a picture shows paint: the pixels [size, size] that a change of colour changes."""
    red, green = (draw(index, colour=colour, **overrides).int() for colour in ("red", "green"))
    return (red - green).abs().sum(dim=0) > 150


def overlap(one, other):
    """Shared area of two masks over their joint area, for the best shift to left or right."""
    reach = one.shape[1] // 5
    shifted = [other.roll(shift, dims=1) for shift in range(-reach, reach + 1)]
    return max(((one & mask).sum() / (one | mask).sum()).item() for mask in shifted)


def test_the_choices_are_as_many_and_as_named():
    assert (len(BODIES), len(COLOURS)) == (6, 8)
    assert set(COLOURS) == set(PLAIN)
    assert DIRECTIONS == ("left", "right")
    assert TIMES == ("by day", "at sunset", "at night")


def test_a_set_has_the_promised_shapes_and_types():
    cars = load(count=5, size=24)
    assert cars.images.shape == (5, 3, 24, 24) and cars.images.dtype == torch.uint8
    assert cars.labels.shape == (5, 4) and cars.labels.dtype == torch.int64
    assert len(cars.captions) == 5
    assert cars.images.is_contiguous()


@pytest.mark.parametrize("size", [16, 32, 64, 136])
def test_a_picture_has_its_size_and_uses_the_range(size):
    picture = draw(3, size=size, colour="white", time="by day")
    assert picture.shape == (3, size, size) and picture.dtype == torch.uint8
    assert picture.min() < 60 and picture.max() > 200


def test_a_larger_picture_shows_the_same_at_more_detail():
    for index in range(8):
        large = draw(index, size=128).float()
        small = torch.nn.functional.avg_pool2d(large, 4)
        assert (small - draw(index, size=32).float()).abs().mean() < 6
        assert (small - draw(index + 1, size=32).float()).abs().mean() > 6


def test_the_same_numbers_give_the_same_picture():
    assert torch.equal(draw(7, seed=3), draw(7, seed=3))
    assert not torch.equal(draw(7, seed=3), draw(8, seed=3))
    assert not torch.equal(draw(7, seed=3), draw(7, seed=4))


def test_a_longer_set_continues_a_shorter_one():
    short, long = load(6, seed=2), load(10, seed=2)
    assert torch.equal(long.images[:6], short.images)
    assert torch.equal(long.labels[:6], short.labels)
    assert long.captions[:6] == short.captions
    late = load(4, seed=2, start=6)
    assert torch.equal(late.images, long.images[6:])
    assert torch.equal(late.labels, long.labels[6:])
    assert late.captions == long.captions[6:]


def test_a_set_is_made_of_single_pictures():
    cars = load(4, size=32, seed=5)
    assert len(cars.images) == len(cars.labels) == len(cars.captions) == 4
    for index in range(4):
        assert torch.equal(cars.images[index], draw(index, seed=5, size=32))
        shown = [values[place] for values, place in zip(CHOICES.values(), cars.labels[index].tolist())]
        assert shown == [*attributes(index, seed=5).values()]
        assert cars.captions[index] == caption(index, seed=5)


def test_labels_and_captions_name_what_is_shown():
    cars = load(40, size=16, seed=1)
    for index, (words, places) in enumerate(zip(cars.captions, cars.labels.tolist())):
        body, colour, direction, time = (values[place] for values, place in zip(CHOICES.values(), places))
        article = "an" if colour == "orange" else "a"
        assert words == f"{article} {colour} {body} facing {direction} {time}"
        shown = {"body": body, "colour": colour, "direction": direction, "time": time}
        assert attributes(index, seed=1) == shown
        assert torch.equal(draw(index, seed=1, size=16, **shown), cars.images[index])


def test_attributes_are_uniform_and_independent():
    shown = [attributes(index) for index in range(2000)]
    for name, values in CHOICES.items():
        counts = Counter(one[name] for one in shown)
        for value in values:  # within 5 standard deviations of an even share
            share = 1 / len(values)
            assert abs(counts[value] - 2000 * share) < 5 * (2000 * share * (1 - share)) ** 0.5
    for one_name, other_name in combinations(CHOICES, 2):
        counts = Counter((one[one_name], one[other_name]) for one in shown)
        pairs = len(CHOICES[one_name]) * len(CHOICES[other_name])
        assert len(counts) == pairs
        assert max(counts.values()) < 2000 / pairs + 5 * (2000 / pairs) ** 0.5


@pytest.mark.parametrize("name", CHOICES)
def test_every_value_of_an_attribute_gives_another_picture(name):
    for index in range(3):
        pictures = [draw(index, size=32, **{name: value}).int() for value in CHOICES[name]]
        for one, other in combinations(pictures, 2):
            changed = (one - other).abs().sum(dim=0) > 30
            assert changed.float().mean() > 0.03


def test_an_override_leaves_the_rest_alone():
    for index in range(5):
        one, other = (draw(index, body="sedan", colour=colour) for colour in ("red", "green"))
        assert torch.equal(one[:, :20], other[:, :20]) and torch.equal(one[:, 56:], other[:, 56:])


def test_pictures_of_one_kind_all_differ():
    kind = {"body": "van", "colour": "blue", "direction": "left", "time": "by day"}
    pictures = [draw(index, size=32, **kind) for index in range(30)]
    assert all(not torch.equal(one, other) for one, other in combinations(pictures, 2))
    columns = [painted(index, body="van").any(dim=0).nonzero() for index in range(30)]
    middles = torch.tensor([(first + last) / 2 for first, *_, last in columns])
    widths = torch.tensor([last - first for first, *_, last in columns])
    assert middles.max() - middles.min() > 2 and widths.max() - widths.min() > 2


@pytest.mark.parametrize("body", BODIES)
def test_the_other_direction_mirrors_the_car(body):
    for index in range(2):
        left, right = (painted(index, size=128, body=body, direction=way) for way in DIRECTIONS)
        assert overlap(left.flip(1), right) > 0.93
        assert overlap(left, right) < overlap(left.flip(1), right) - 0.15


def test_the_headlight_shines_ahead():
    for index in range(6):
        left, right = (draw(index, body="hatchback", time="at night", direction=way).int() for way in DIRECTIONS)
        brighter = (left - right).sum(dim=0)
        assert brighter[:, :6].sum() > 1000 and brighter[:, -6:].sum() < -1000


def test_bodies_have_silhouettes_of_their_own():
    for index in range(3):
        masks = [painted(index, body=body, direction="left").int() for body in BODIES]
        filled = [
            (mask.cummax(0).values & mask.flip(0).cummax(0).values.flip(0)).bool() for mask in masks
        ]  # from the highest to the lowest paint of each column
        for one, other in combinations(filled, 2):
            assert overlap(one, other) < 0.7


def test_the_sky_tells_the_time():
    for index in range(10):
        day, dusk, night = (draw(index, time=time)[:, :4].float().mean(dim=(1, 2)) for time in TIMES)
        assert day[2] > day[0] and dusk[1] < min(dusk[0], dusk[2])
        assert day.sum() > dusk.sum() > night.sum()


@pytest.mark.parametrize("time", TIMES)
def test_the_colour_of_a_car_can_be_read(time):
    plain = torch.tensor([PLAIN[colour] for colour in COLOURS]).float()
    right = 0
    for index in range(40):
        picture, paint = draw(index, time=time).float(), painted(index, time=time)
        seen = picture[:, paint].median(dim=1).values
        right += COLOURS[(plain - seen).norm(dim=1).argmin()] == attributes(index)["colour"]
    assert right >= 38


def test_global_random_numbers_are_neither_used_nor_changed():
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = load(3, size=16)
    before = torch.rand(2), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    assert torch.equal(load(3, size=16).images, expected.images)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    load(3, size=16)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.rand(2), before[0])
    assert (np.random.rand(), random.random()) == before[1:]
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    assert torch.equal(load(3, size=16).images, expected.images)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"count": 0}, "count must be a whole number of at least 1, not 0"),
        ({"count": 2.5}, "count must be a whole number of at least 1, not 2.5"),
        ({"count": 1, "size": 8}, "size must be a whole number of at least 16, not 8"),
        ({"count": 1, "size": 30}, "size must be a multiple of 8, not 30; try 24"),
        ({"count": 1, "size": "32"}, "size must be a whole number of at least 16, not '32'"),
        ({"count": 1, "seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"count": 1, "start": -4}, "start must be a whole number of at least 0, not -4"),
    ],
)
def test_a_set_that_cannot_be_made_says_why(wrong, message):
    with pytest.raises(ValueError, match=message):
        load(**wrong)


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_value_is_answered_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"{name} cannot be 'tram'") as error:
        draw(0, **{name: "tram"})
    assert all(value in str(error.value) for value in CHOICES[name])


def test_other_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="'wheels' is no attribute; choose from body, colour, di"):
        draw(0, wheels="four")
    for function in (attributes, caption, draw):
        with pytest.raises(ValueError, match="index must be a whole number of at least 0, not -1"):
            function(-1)
        with pytest.raises(ValueError, match="seed must be a whole number of at least 0, not 'a'"):
            function(0, seed="a")


def test_whole_numbers_of_other_types_are_welcome():
    assert torch.equal(draw(np.int64(4), size=np.int64(32)), draw(4, size=32))
    assert caption(torch.tensor(4)) == caption(4)
