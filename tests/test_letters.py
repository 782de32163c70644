"""Letters: pictures and labels that depend on (seed, index) alone, a set by name, and a folder of image files."""

import warnings
from collections import Counter

import pytest
import torch
from PIL import Image

from diffusion_utils.data import letters, sets
from diffusion_utils.data.letters import FONTS, LETTERS, draw, load, write_folder
from diffusion_utils.data.pictures import load_folder


def test_a_set_has_the_promised_shapes_types_and_classes():
    images, labels = load(300, 16)
    assert images.shape == (300, 3, 16, 16) and images.dtype == torch.uint8 and images.is_contiguous()
    assert labels.shape == (300,) and labels.dtype == torch.int64 and {*labels.tolist()} == {*range(26)}
    assert len(LETTERS) == 26 and max(Counter(labels.tolist()).values()) < 30


def test_a_longer_set_continues_a_shorter_one_and_other_numbers_give_other_pictures():
    long, other = load(8, 24), load(8, 24, seed=1)
    assert torch.equal(load(3, 24, start=5).images, long.images[5:])
    assert torch.equal(load(3, 24, start=5).labels, long.labels[5:])
    assert not torch.equal(other.images, long.images) and len({image.sum().item() for image in long.images}) == 8


def test_a_larger_picture_shows_the_same_at_more_detail():
    for index in range(8):
        (large, label), (small, same), (other, _) = draw(index, size=128), draw(index), draw(index + 1)
        large = torch.nn.functional.avg_pool2d(large.float(), 4)
        assert label == same and (large - small.float()).abs().mean() < 4 < (large - other.float()).abs().mean()


def contrast(image):
    """How far the pixels are from their picture's mean colour, at most, of 255."""
    return (image.float() - image.float().mean((1, 2), keepdim=True)).abs().mean(0).max()


def test_every_letter_can_be_seen_in_every_font(monkeypatch):
    assert min(contrast(image) for image in load(200, 32).images) > 40
    shapes = {}
    for font in range(len(FONTS)):
        face = letters._font(font, 60)
        for letter in LETTERS:
            mask = face.getmask(letter)
            assert mask.getbbox(), (FONTS[font], letter)
            shapes[FONTS[font], letter] = bytes(mask)
    assert len({*shapes.values()}) > 0.97 * len(shapes)  # a font without letters shows the same box for each


@pytest.mark.parametrize("wrong", [{"index": -1}, {"index": 0.5}, {"index": 0, "size": 8}, {"index": 0, "seed": -1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must be a whole number of at least"):
        draw(**wrong)


def test_the_folder_holds_the_same_letters_in_a_subfolder_each(tmp_path):
    folder = write_folder(tmp_path / "mine", 60, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_folder(folder, 16, classes=True)
    expected = load(60, 16)
    order = sorted(range(60), key=lambda i: (LETTERS[expected.labels[i]], i))
    assert torch.equal(found.images, expected.images[order]) and found.aspect == "1:1"
    assert [found.classes[label] for label in found.labels.tolist()] == [LETTERS[expected.labels[i]] for i in order]
    with Image.open(next(folder.glob("*/*.png"))) as image:
        assert image.size == (16, 16)
    with pytest.raises(FileExistsError, match="mine is not empty: give the name of a new folder"):
        write_folder(folder, 2)


@pytest.fixture
def few(monkeypatch):
    """In place of 8,704 letters 60, the last 12 of which are held out."""
    drawn = load(60, 16)
    pick = torch.tensor([*range(48)] * 171)[:8192].tolist() + [48 + i % 12 for i in range(512)]
    monkeypatch.setattr(letters, "load", lambda count, size: letters.Letters(drawn.images[pick], drawn.labels[pick]))


def test_they_are_learnt_by_name_and_never_mirrored(few):
    found = sets.load("letters", 16, "class")
    assert len(found.images) == 8192 and len(found.part("test")) == 256 and not found.flip and found.aspect == "1:1"
    assert set(found.classes) == set(LETTERS) and found.conditional({"name": "resnet"})["cond_dim"] == 26
    assert sets.load("letters", 16).classes is None and "Apache" in found.licence
    for options, said in (
        ({"condition": "caption"}, "no captions are known of letters"),
        ({"condition": "body_type"}, "no 'body_type' is known of letters"),
        ({"aspect": "4:3"}, "letters are drawn 1:1, not to 4:3"),
    ):
        with pytest.raises(ValueError, match=said):
            sets.load("letters", 16, **options)
