"""Reading back what a picture shows: the readers must be right before anything is measured with them."""

import torch

from diffusion_utils.data import letters, to_float, toy_cars
from diffusion_utils.evaluation import attributes


def test_a_trained_reader_reads_cars_it_has_not_seen():
    reader = attributes.train_reader(toy_cars.load(1024, 32, seed=1), steps=250)
    cars = toy_cars.load(200, 32, seed=2)
    right = attributes.accuracy(reader.read(cars.images), cars.labels)
    assert right["all"] > 0.95 and right["colour"] > 0.97
    assert torch.equal(reader.read(to_float(cars.images)), reader.read(cars.images))
    mirrored = attributes.accuracy(reader.read(cars.images.flip(3)), cars.labels)
    assert mirrored["direction"] < 0.1  # it reads the picture, not its own habits


def test_a_reader_of_letters_tells_them_apart():
    reader = attributes.train_reader(letters.load(1000, 16, seed=1), steps=250)
    found = letters.load(100, 16, seed=2)
    assert (reader.read(found.images)[:, 0] == found.labels).double().mean() > 0.8
    assert reader.read(found.images[:2]).shape == (2, 1)


def test_accuracy_counts_each_attribute_and_all_at_once():
    asked = torch.tensor([[0, 0, 0, 0], [1, 2, 1, 2], [5, 7, 1, 2], [3, 3, 0, 1]])
    read = asked.clone()
    read[0, 1], read[1, 0], read[1, 3] = 6, 2, 0
    assert attributes.accuracy(read, asked) == {
        "body": 0.75,
        "colour": 0.75,
        "direction": 1.0,
        "time": 0.75,
        "all": 0.5,
    }


def test_every_kind_has_its_caption_and_labels():
    captions, labels = attributes.every_kind()
    assert len(captions) == len(set(captions)) == 288 and labels.shape == (288, 4)
    cars = toy_cars.load(300, 16)
    known = dict(zip(captions, labels.tolist()))
    assert all(known[caption] == row for caption, row in zip(cars.captions, cars.labels.tolist()))
    held_out, rest = attributes.every_kind(held_out=True), attributes.every_kind(held_out=False)
    assert len(held_out[0]) == 36 and len(rest[0]) == 252 and not set(held_out[0]) & set(rest[0])
    assert set(cars.part(held_out=True).captions) <= set(held_out[0])


def test_a_feature_reader_finds_what_is_there_and_no_more():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (600,), generator=generator)
    features = torch.randn(600, 20, generator=generator)
    features[:, 4] += 3.0 * (labels == 1)
    features[:, 7] -= 3.0 * (labels == 2)
    reader = attributes.FeatureReader(features[:400], labels[:400], strength=1.0)
    assert (reader.read(features[400:]) == labels[400:]).float().mean() > 0.85
    noise = torch.randn(200, 20, generator=generator)
    share = (reader.read(noise) == labels[400:]).float().mean()
    assert share < 0.5
