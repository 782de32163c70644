"""Sets of pictures by name: what is learnt from them, and how they are told apart."""

from dataclasses import replace

import pytest
import torch

from diffusion_utils.data.sets import PictureSet

PICTURES = torch.arange(2 * 3 * 8 * 8).remainder(251).to(torch.uint8).view(2, 3, 8, 8)


def picture_set(images=PICTURES, **known):
    return PictureSet("some", images, images, "two pictures", **known)


@pytest.mark.parametrize(
    "other",
    [
        picture_set(PICTURES + 1),
        picture_set(PICTURES.flip(0)),
        picture_set(PICTURES[:1]),
        picture_set(PICTURES.reshape(2, 3, 4, 16)),
        picture_set(condition="body_type", labels=torch.tensor([0, 1])),
        picture_set(condition="caption", captions=[["a car"], ["a van"]]),
    ],
)
def test_the_fingerprint_tells_sets_apart(other):
    assert other.fingerprint != picture_set().fingerprint


def test_the_fingerprint_depends_on_pictures_and_conditions_alone():
    again = replace(picture_set(), data="elsewhere", description="the same two", held_out=PICTURES[:1])
    assert again.fingerprint == picture_set(PICTURES.flip(3).flip(3)).fingerprint == picture_set().fingerprint
    assert picture_set().fingerprint == "d2b3cd7e26520de0"  # the same on every machine


def test_held_out_pictures_have_two_halves():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 8, 8)
    known = PictureSet("some", images, images, "five", in_test=torch.tensor([True, False, False, True, True]))
    assert known.part("test")[:, 0, 0, 0].tolist() == [0, 3, 4]
    assert known.part("validation")[:, 0, 0, 0].tolist() == [1, 2]
    drawn = replace(known, in_test=None)  # pictures without file names
    assert drawn.part("test")[:, 0, 0, 0].tolist() == [1, 3] and len(drawn.part("validation")) == 3
