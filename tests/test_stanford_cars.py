"""Stanford Cars from disk: the right files, boxes and crops, and a way out of every bad input.

The tests make a small folder in the layout of the real one.  Where STANFORD_CARS_ROOT is set, the
last ones read the real data as well.
"""

import os
import runpy
import shutil
import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.io import loadmat, savemat
from torchvision.datasets import StanfordCars

from diffusion_utils import files
from diffusion_utils.commands import main
from diffusion_utils.data import pictures, sets, stanford_cars
from diffusion_utils.data.pictures import crop, is_held_out, is_test, load_folder
from diffusion_utils.data.stanford_cars import BODY_TYPES, CarPictures, body_type, load

CLASSES = [f"Make Model {i}" for i in range(196)]
CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
GREY, RED = (90, 90, 90), (255, 0, 0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test, and no real data by accident."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DIFFUSION_UTILS_CACHE", str(folder))
    monkeypatch.delenv("STANFORD_CARS_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def frame(size=(200, 150), box=(60, 50, 140, 110), colour=RED):
    """A grey picture with a coloured rectangle; the box counts from 0, ends excluded."""
    image = Image.new("RGB", size, GREY)
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=colour)
    return image


def write_annotations(path, rows, name="annotations"):
    """Rows of (fname, class, x1, y1, x2, y2), as in the real file: 1-based, inclusive, uint16."""
    table = np.empty((1, len(rows)), [(name, object) for name in (*CORNERS, "class", "fname")])
    for i, (file, label, *box) in enumerate(rows):
        table[0, i] = (*(np.uint16([[x]]) for x in box), np.uint8([[label]]), file)
    savemat(path, {name: table})


def make(root, count=4, split="train", colours=None):
    """A data set of `count` frames; returns the folder that holds stanford_cars/."""
    base = root / "stanford_cars"
    pictures = base / f"cars_{split}"
    pictures.mkdir(parents=True)
    (base / "devkit").mkdir(exist_ok=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array([CLASSES], dtype=object)})
    rows = []
    for i in range(count):
        box = (20 + i, 30, 120 + i, 105)
        colour = (colours or [(40 * i, 255 - 40 * i, 200)] * count)[i]
        frame(box=box, colour=colour).save(pictures / f"{i + 1:05d}.jpg", quality=95)
        rows.append((f"{i + 1:05d}.jpg", 196 - i, box[0] + 1, box[1] + 1, box[2], box[3]))
    write_annotations(annotations(root, split), rows)
    return root


def annotations(root, split="train"):
    base = root / "stanford_cars"
    train, test = base / "devkit" / "cars_train_annos.mat", base / "cars_test_annos_withlabels.mat"
    return train if split == "train" else test


def red_area(picture):
    """Edges (left, top, right, bottom) of what is more red than grey in a uint8 (3, H, W)."""
    picture = torch.as_tensor(np.array(picture)).int()
    picture = picture if len(picture) == 3 else picture.permute(2, 0, 1)
    rows, columns = torch.nonzero(picture[0] - picture[1] > 130, as_tuple=True)
    edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return tuple(int(e) for e in edges)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("inner", [False, True])
def test_a_set_is_read_in_order(tmp_path, split, inner):
    root = make(tmp_path, split=split)
    cars = load(root / "stanford_cars" if inner else str(root), split=split, size=16)
    assert cars.images.shape == (4, 3, 16, 16) and cars.images.dtype == torch.uint8
    assert cars.names == ["00001.jpg", "00002.jpg", "00003.jpg", "00004.jpg"]
    assert cars.labels.tolist() == [195, 194, 193, 192] and cars.labels.dtype == torch.int64
    assert cars.classes == CLASSES
    assert cars.skipped == []
    for i, image in enumerate(cars.images):  # each shows its own rectangle
        expected = torch.tensor([40 * i, 255 - 40 * i, 200])
        assert (image[:, 8, 8].int() - expected).abs().max() < 12
        with Image.open(root / "stanford_cars" / f"cars_{split}" / cars.names[i]) as whole:
            expected = np.asarray(crop(whole, (20 + i, 30, 120 + i, 105), 16))
        assert np.array_equal(image.permute(1, 2, 0), expected)


@pytest.mark.parametrize("split", ["train", "test"])
def test_torchvision_reads_the_same_folder_alike(tmp_path, split):
    theirs = StanfordCars(str(make(tmp_path, split=split)), split=split)
    ours = load(tmp_path, split=split, size=16)
    assert ours.names == [Path(file).name for file, _ in theirs._samples]
    assert ours.labels.tolist() == [label for _, label in theirs._samples]
    assert ours.classes == list(theirs.classes)


def test_a_set_of_one_picture_is_read(tmp_path):
    cars = load(make(tmp_path, count=1), size=16)
    assert len(cars.images) == len(cars.names) == 1 and cars.labels.tolist() == [195]


def test_class_names_are_optional(tmp_path):
    make(tmp_path)
    (tmp_path / "stanford_cars" / "devkit" / "cars_meta.mat").unlink()
    assert load(tmp_path, size=16).classes == []


def test_the_folder_is_found_by_the_variable_or_beside_the_caller(tmp_path, monkeypatch):
    assert stanford_cars.find() is None
    make(tmp_path / "data")
    assert stanford_cars.find() == Path("data")
    assert len(load(size=16).images) == 4
    make(tmp_path / "elsewhere", count=3)
    monkeypatch.setenv("STANFORD_CARS_ROOT", str(tmp_path / "elsewhere"))
    assert stanford_cars.find() == tmp_path / "elsewhere"
    assert len(load(size=16).images) == 3
    monkeypatch.setenv("STANFORD_CARS_ROOT", str(tmp_path / "elsewhere" / "stanford_cars"))
    assert len(load(size=16).images) == 3


# ---------------------------------------------------------------- other layouts


def torchvisions(base):
    pass


def unpacked_into_themselves(base):
    """As Kaggle serves the archives, with the devkit where its own archive puts it."""
    for split in ("train", "test"):
        (base / f"cars_{split}").rename(base / "pictures")
        (base / f"cars_{split}").mkdir()
        (base / "pictures").rename(base / f"cars_{split}/cars_{split}")
    (base / "car_devkit").mkdir()
    (base / "devkit").rename(base / "car_devkit/devkit")


def all_in_devkit(base):
    (base / "cars_test_annos_withlabels.mat").rename(base / "devkit/cars_test_annos_withlabels.mat")


def one_archive(base):
    """car_ims/000001.jpg … with cars_annos.mat for both splits, which says the classes, too."""
    (base / "car_ims").mkdir()
    rows, kind = [], [(name, object) for name in ("relative_im_path", *CORNERS, "class", "test")]
    for split in ("train", "test"):
        for file, box, label in stanford_cars.read_annotations(base, split)[0]:
            name = f"car_ims/{len(rows) + 1:06d}.jpg"
            file.rename(base / name)
            x1, y1, x2, y2 = (np.uint16([[round(x)]]) for x in np.add(box, (1, 1, 0, 0)))
            rows.append((name, x1, y1, x2, y2, np.uint8([[label + 1]]), np.uint8([[split == "test"]])))
    table = np.empty((1, len(rows)), kind)
    for i, row in enumerate(rows):
        table[0, i] = row
    savemat(base / "cars_annos.mat", {"annotations": table, "class_names": np.array([CLASSES], dtype=object)})
    shutil.rmtree(base / "devkit")
    (base / "cars_test_annos_withlabels.mat").unlink()


def a_folder_per_class(base):
    """car_data/car_data/train/CLASS/00001.jpg …, with the boxes as CSV."""
    (base / "names.csv").write_text("".join(f"{name}\n" for name in CLASSES))
    for split in ("train", "test"):
        lines = []
        for file, (x1, y1, x2, y2), label in stanford_cars.read_annotations(base, split)[0]:
            where = base / "car_data/car_data" / split / CLASSES[label].replace("/", "-")
            where.mkdir(parents=True)
            file.rename(where / file.name)
            lines.append(f"{file.name},{x1 + 1:.0f},{y1 + 1:.0f},{x2:.0f},{y2:.0f},{label + 1}\n")
        (base / f"anno_{split}.csv").write_text("".join(lines))
    shutil.rmtree(base / "devkit")
    (base / "cars_test_annos_withlabels.mat").unlink()


LAYOUTS = [torchvisions, unpacked_into_themselves, all_in_devkit, one_archive, a_folder_per_class]


@pytest.mark.filterwarnings("ignore:.*car_ims/ numbers")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cars_are_read_as_people_have_them(tmp_path, monkeypatch, layout):
    for split in ("train", "test"):
        make(tmp_path, split=split)
    expected = {split: load(tmp_path, split, 16) for split in ("train", "test")}
    layout(tmp_path / "stanford_cars")
    monkeypatch.setenv("STANFORD_CARS_ROOT", str(tmp_path))
    for split, before in expected.items():
        cars = load(split=split, size=16)
        assert torch.equal(cars.images, before.images) and torch.equal(cars.labels, before.labels)
        assert cars.classes == CLASSES and isinstance(cars.part(True), CarPictures)
        if layout is not one_archive:  # held out are the same ones
            assert cars.names == before.names


def test_another_numbering_is_said(tmp_path):
    for split in ("train", "test"):
        make(tmp_path, split=split)
    one_archive(tmp_path / "stanford_cars")
    with pytest.warns(UserWarning, match="car_ims/ numbers the cars in its own way, so that others are held out"):
        load(tmp_path, size=16)
    (tmp_path / "stanford_cars/car_ims").rename(tmp_path / "stanford_cars/cars_train")
    with pytest.raises(FileNotFoundError, match="cars_annos.mat describes the pictures of car_ims/, .* need devkit/"):
        load(tmp_path, size=16)


def test_an_unknown_layout_lists_what_was_looked_for_and_what_was_found(tmp_path):
    for name in ("cars", "labels", *"abcdefgh"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    text = "there is no cars_train_annos.mat, cars_annos.mat, anno_train.csv in it .*, only a/, b/, c/, .*, …"
    with pytest.raises(FileNotFoundError, match=f"mine is not in a layout .*{text}.*download"):
        load(tmp_path / "mine")


@pytest.mark.parametrize("there", [False, True])
def test_a_variable_that_points_nowhere_is_refused(tmp_path, monkeypatch, there):
    make(tmp_path / "data")  # another copy, which was not asked for
    if there:
        (tmp_path / "nowhere").mkdir()
    monkeypatch.setenv("STANFORD_CARS_ROOT", str(tmp_path / "nowhere"))
    for call in (stanford_cars.find, load, lambda: sets.load("stanford_cars", 16)):
        with pytest.raises(
            FileNotFoundError, match="STANFORD_CARS_ROOT points at a wrong place: .*nowhere .*Get the data"
        ):
            call()
    monkeypatch.setenv("STANFORD_CARS_ROOT", "")  # as if it were not set
    assert stanford_cars.find() == Path("data")


def test_the_variable_knows_the_home_folder(tmp_path, monkeypatch):
    make(tmp_path / "home/cars")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("STANFORD_CARS_ROOT", "~/cars")
    assert stanford_cars.find() == tmp_path / "home/cars" and len(load("~/cars", size=16).images) == 4


def test_a_copy_in_the_working_directory_is_found(tmp_path):
    make(tmp_path)
    assert stanford_cars.find() == Path("stanford_cars") and len(load(size=16).images) == 4


# ---------------------------------------------------------------- what to hold out


def test_held_out_depends_on_the_file_name_alone():
    assert is_held_out("00001.jpg") == is_held_out("a/b/00001.jpg") == is_held_out("./00001.jpg")
    names = [f"{i:05d}.jpg" for i in range(1, 8145)]
    share = sum(map(is_held_out, names)) / len(names)
    assert 0.09 < share < 0.11
    # Written down: a change here would let pictures seen in training into the measurement.
    assert [i for i in range(1, 40) if is_held_out(f"{i:05d}.jpg")] == [4, 18, 34, 37]


def test_half_of_the_held_out_pictures_are_to_report_on_chosen_by_their_names_alone():
    assert is_test("00001.jpg") == is_test("a/b/00001.jpg")
    names = [name for name in (f"{i:05d}.jpg" for i in range(1, 8145)) if is_held_out(name)]
    assert [name for name in names if not is_test(name)][:4] == ["00073.jpg", "00074.jpg", "00094.jpg", "00102.jpg"]
    assert 0.45 < sum(map(is_test, names)) / len(names) < 0.55


@pytest.mark.parametrize(
    "name, kind",
    [
        ("BMW M3 Coupe 2012", "coupe"),
        ("AM General Hummer SUV 2000", "SUV"),
        ("Dodge Dakota Club Cab 2007", "pickup"),
        ("Ford Ranger SuperCab 2011", "pickup"),
        ("Ford E-Series Wagon Van 2012", "van"),
        ("Ram C/V Cargo Van Minivan 2012", "minivan"),
        ("Bentley Continental Supersports Conv. Convertible 2012", "convertible"),
        ("Chevrolet TrailBlazer SS 2009", "SUV"),
        ("FIAT 500 Abarth 2012", "hatchback"),
    ],
)
def test_the_body_type_is_read_from_the_name_of_the_class(name, kind):
    assert body_type(name) == kind


@pytest.mark.parametrize("name", ["", "2012", "BMW Isetta 1955"])
def test_a_name_without_a_body_type_is_an_error(name):
    with pytest.raises(ValueError, match="does not say what kind of car it is: one of sedan, SUV"):
        body_type(name)


def test_pictures_know_their_body_types():
    classes = ["Audi TT Hatchback 2011", "GMC Savana Van 2012"]
    cars = CarPictures(torch.zeros(3, 3, 8, 8), ["a", "b", "c"], torch.tensor([1, 0, 1]), classes, [])
    assert [BODY_TYPES[i] for i in cars.body_types()] == ["van", "hatchback", "van"]
    for lacking in (replace(cars, classes=[]), replace(cars, labels=torch.tensor([0, -1, 1]))):
        with pytest.raises(ValueError, match="which these pictures lack"):
            lacking.body_types()


def test_the_two_parts_make_the_whole(tmp_path):
    cars = load(make(tmp_path, count=30), size=8)
    rest, held_out = cars.part(False), cars.part(True)
    assert set(rest.names).isdisjoint(held_out.names) and held_out.names
    assert sorted(rest.names + held_out.names) == cars.names
    for part in (rest, held_out):
        assert len(part.images) == len(part.labels) == len(part.names)
        for image, name, label in zip(part.images, part.names, part.labels):
            i = cars.names.index(name)
            assert torch.equal(image, cars.images[i]) and label == cars.labels[i]


# ---------------------------------------------------------------- cropping


def test_a_box_of_4_to_3_has_the_same_margin_on_all_sides():
    image = frame((400, 300), (100, 80, 260, 200))  # 160 × 120
    left, top, right, bottom = red_area(crop(image, (100, 80, 260, 200), 116))
    # The window is 116 % of the box, so that the margins are 8 of 116 pixels.
    assert (left, top, right, bottom) == (8, 8, 108, 108)


def test_a_wide_box_fills_the_width_and_a_tall_one_the_height():
    wide = red_area(crop(frame((800, 600), (200, 270, 600, 330)), (200, 270, 600, 330), 116))
    # 400 wide, so the window is 464 × 348 and the box's 60 rows are 20 of its 116.
    assert (wide[0], wide[2]) == (8, 108)
    assert (wide[1], wide[3]) == (48, 68)
    tall = red_area(crop(frame((800, 600), (370, 200, 430, 440)), (370, 200, 430, 440), 116))
    # 240 tall, so the window is 278.4 high and 371.2 wide: the 60 columns are 18.75 of its 116.
    assert (tall[1], tall[3]) == (8, 108)
    assert tall[2] - tall[0] in (18, 19, 20) and abs(tall[0] + tall[2] - 116) <= 1


def test_swapped_corners_mean_the_same_box():
    image = frame((400, 300), (100, 80, 260, 200))
    straight = np.asarray(crop(image, (100, 80, 260, 200), 32))
    for box in ((260, 80, 100, 200), (100, 200, 260, 80), (260, 200, 100, 80)):
        assert np.array_equal(np.asarray(crop(image, box, 32)), straight)


def test_beyond_the_frame_the_edge_is_repeated():
    # Columns in three colours and the box at the left edge: left of the frame all is blue.
    image = Image.new("RGB", (300, 225), GREY)
    image.paste((0, 0, 255), (0, 0, 40, 225))
    result = np.asarray(crop(image, (0, 60, 120, 150), 116)).astype(int)
    assert np.abs(result[:, :8] - (0, 0, 255)).max() == 0  # 8 pixels of margin, all made up
    assert (np.abs(result[:, -8:] - GREY).max(axis=(0, 1)) == 0).all()
    corner = Image.new("RGB", (80, 60), GREY)  # all sides at once: the box is the frame
    corner.putpixel((0, 0), RED)
    assert red_area(crop(corner, (0, 0, 80, 60), 116))[:2] == (0, 0)


def test_a_box_that_leaves_the_frame_is_clipped_to_it():
    image = frame((200, 150), (100, 75, 200, 150))
    inside = crop(image, (100, 75, 200, 150), 32)
    assert np.array_equal(crop(image, (100, 75, 900, 700), 32), inside)
    image = frame((200, 150), (0, 0, 100, 75))
    assert np.array_equal(crop(image, (-50, -9, 100, 75), 32), crop(image, (0, 0, 100, 75), 32))


@pytest.mark.parametrize("box", [(500, 10, 600, 90), (-90, 10, -5, 60), (10, 900, 50, 950), (70, 70, 70, 70)])
def test_a_box_without_any_picture_in_it_means_the_whole_frame(box):
    image = frame((200, 150))
    assert np.array_equal(crop(image, box, 32), crop(image, (0, 0, 200, 150), 32))


def test_without_a_box_the_largest_central_window_is_taken():
    wide = Image.new("RGB", (600, 300), "blue")  # the window is 400 × 300, in the middle
    wide.paste(GREY, (100, 0, 500, 300))
    tall = Image.new("RGB", (400, 900), "blue")  # 400 × 300 again
    tall.paste(GREY, (0, 300, 400, 600))
    for image, across in ((wide, 1), (tall, 0)):
        result = np.moveaxis(np.asarray(crop(image, None, 20)).astype(int), across, 0)
        # The filter reaches a little beyond the window, so the outermost pixels ring a little.
        assert (result[3:-3] == GREY).all() and np.abs(result - GREY).max() < 40


def test_shrinking_averages_over_all_pixels():
    """Every second column white: picking single pixels would give stripes, averaging gives grey."""
    stripes = np.zeros((240, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    result = np.asarray(crop(Image.fromarray(stripes), None, 16)).astype(int)
    assert np.abs(result - 127.5).max() < 8


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "1", "RGB"])
def test_every_kind_of_picture_becomes_rgb(mode):
    image = frame().convert("L" if mode == "LA" else "RGB").convert(mode)
    result = crop(image, (60, 50, 140, 110), 24)
    assert result.mode == "RGB" and result.size == (24, 24)
    shown = np.asarray(result)
    assert shown.max() > shown.min() + 10  # the rectangle is still there
    if mode in ("RGBA", "P", "CMYK"):
        assert red_area(result)[0] in (1, 2)  # and red


def test_transparency_becomes_white():
    image = Image.new("RGBA", (80, 60), (255, 0, 0, 0))
    assert (np.asarray(crop(image, None, 8)) == 255).all()
    palette = Image.new("P", (80, 60), 3)
    palette.info["transparency"] = 3
    assert (np.asarray(crop(palette, None, 8)) == 255).all()
    half = Image.new("RGBA", (80, 60), (0, 0, 0, 128))
    assert np.abs(np.asarray(crop(half, None, 8)).astype(int) - 127).max() <= 1


def test_kinds_of_files_are_read_alike(tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, mode in (("a.png", "L"), ("b.png", "RGBA"), ("c.gif", "P"), ("d.jpg", "CMYK")):
        frame().convert(mode).save(folder / name)
    frame().save(folder / "E.JPEG")
    (folder / "notes.txt").write_text("not a picture")
    (folder / "sub.png").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the folder that is called like a picture
        pictures = load_folder(folder, size=16)
    assert pictures.names == ["E.JPEG", "a.png", "b.png", "c.gif", "d.jpg"]
    assert pictures.images.shape == (5, 3, 16, 16)
    assert pictures.labels.tolist() == [-1] * 5 and pictures.classes == []
    colourful = pictures.images[[0, 2, 3, 4]].int()  # the grey one is but grey
    assert ((colourful[:, 0] - colourful[:, 1]).amax((1, 2)) > 150).all()


# ---------------------------------------------------------------- damaged pictures


@pytest.fixture
def damaged(tmp_path):
    """Six pictures: the second cut short, the third no picture, the fifth gone, the sixth empty."""
    root = make(tmp_path, count=6)
    folder = root / "stanford_cars" / "cars_train"
    whole = (folder / "00002.jpg").read_bytes()
    (folder / "00002.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "00003.jpg").write_text("<html>404</html>")
    (folder / "00005.jpg").unlink()
    (folder / "00006.jpg").write_bytes(b"")
    return root


def test_damaged_pictures_are_named_skipped_and_counted(damaged):
    text = r"skipped 4 of 6 pictures: 00002.jpg: unreadable.* …"
    with pytest.warns(UserWarning, match=text) as said:
        cars = load(damaged, size=16)
    assert said[0].filename == __file__  # points at the caller, not into the package
    assert cars.names == ["00001.jpg", "00004.jpg"]
    assert cars.labels.tolist() == [195, 192] and len(cars.images) == 2
    assert [line.split(":")[0] for line in cars.skipped] == ["00002.jpg", "00003.jpg", "00005.jpg", "00006.jpg"]
    assert "truncated" in cars.skipped[0] and cars.skipped[2] == "00005.jpg: missing"
    whole = load(make(damaged / "whole", count=6), size=16)
    assert torch.equal(cars.images, whole.images[[0, 3]])


def test_damaged_pictures_are_told_every_time_and_read_again_once_mended(damaged):
    for _ in range(2):
        with pytest.warns(UserWarning, match="skipped 4"):
            load(damaged, size=16)
    folder = damaged / "stanford_cars" / "cars_train"
    for name in ("00002.jpg", "00003.jpg", "00005.jpg", "00006.jpg"):
        frame().save(folder / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load(damaged, size=16).images) == 6


def test_not_one_readable_picture_is_an_error(damaged):
    folder = damaged / "stanford_cars" / "cars_train"
    for file in folder.iterdir():
        file.write_bytes(b"no")
    with pytest.raises(ValueError, match="not one readable picture; the first: 00001.jpg"):
        load(damaged, size=16)


# ---------------------------------------------------------------- bad input


def test_a_missing_folder_says_how_to_get_the_data(tmp_path):
    steps = "python -m diffusion_utils download.*kaggle.com.*STANFORD_CARS_ROOT"
    with pytest.raises(FileNotFoundError, match=f"Stanford Cars was not found.*{steps}"):
        load()
    with pytest.raises(FileNotFoundError, match=f"nowhere.*does not exist.*{steps}"):
        load(tmp_path / "nowhere")


def test_a_missing_split_names_the_file(tmp_path):
    make(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no cars_test_annos_withlabels.mat"):
        load(tmp_path, split="test")


def bad_annotations():
    yield "empty", lambda path: path.write_bytes(b"")
    yield "text", lambda path: path.write_text("fname,class\n00001.jpg,3\n" * 40)
    yield "truncated", lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    yield "other variable", lambda path: write_annotations(path, [("a", 1, 1, 1, 2, 2)], "notes")
    yield "numbers", lambda path: savemat(path, {"annotations": np.arange(6.0)})
    yield "strings", lambda path: savemat(path, {"annotations": np.array(["a", "b"])})
    yield "no boxes", lambda path: savemat(path, {"annotations": {"fname": "1.jpg", "class": 1}})
    yield (
        "MATLAB 7.3",
        lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" * 20),
    )


@pytest.mark.parametrize("damage", [pytest.param(f, id=n) for n, f in bad_annotations()])
def test_a_wrong_annotation_file_is_an_error(tmp_path, damage):
    damage(annotations(make(tmp_path)))
    with pytest.raises(ValueError, match="cars_train_annos.mat is no Stanford Cars annotation"):
        load(tmp_path, size=16)


@pytest.mark.parametrize("contents", [b"<html>404</html>", b"", None])
def test_a_wrong_file_of_class_names_is_the_one_that_is_blamed(tmp_path, contents):
    meta = make(tmp_path) / "stanford_cars/devkit/cars_meta.mat"
    if contents is None:
        savemat(meta, {"other": 1})
    else:
        meta.write_bytes(contents)
    with pytest.raises(ValueError, match="cars_meta.mat does not hold the classes' names"):
        load(tmp_path, size=16)


@pytest.mark.parametrize("size", [0, -64, 7, 64.0, "64", None])
def test_a_bad_size_is_an_error(tmp_path, size):
    make(tmp_path)
    with pytest.raises(ValueError, match="size must be a whole number of pixels, at least 8"):
        load(tmp_path, size=size)


def test_a_bad_split_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="split must be 'train' or 'test', not 'valid'"):
        load(make(tmp_path), split="valid")


def test_a_bad_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        load_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no pictures .*\.jpg"):
        load_folder(tmp_path / "empty")
    (tmp_path / "empty" / "a.png").write_text("no")
    with pytest.raises(ValueError, match="not one readable picture; the first: a.png"):
        load_folder(tmp_path / "empty")


# ---------------------------------------------------------------- cache


def count_reads(monkeypatch):
    reads, read = [], pictures._read
    monkeypatch.setattr(pictures, "_read", lambda file, *rest: (reads.append(file), read(file, *rest))[1])
    return reads


def test_the_second_time_comes_from_the_cache(tmp_path, cache, monkeypatch):
    root, reads = make(tmp_path), count_reads(monkeypatch)
    first = load(root, size=16)
    assert len(reads) == 4 and len(list(cache.iterdir())) == 1
    second = load(root, size=16)
    assert len(reads) == 4
    assert torch.equal(first.images, second.images) and first.names == second.names
    assert torch.equal(first.labels, second.labels) and second.skipped == []
    load(root, size=24)  # another size is another cache
    assert len(reads) == 8


def test_a_changed_picture_or_box_is_read_afresh(tmp_path, monkeypatch):
    root, reads = make(tmp_path), count_reads(monkeypatch)
    file = root / "stanford_cars" / "cars_train" / "00003.jpg"
    file.write_bytes(file.read_bytes().ljust(20_000, b"\0"))
    before = load(root, size=16)
    frame(box=(20, 30, 120, 105), colour=RED).save(file, quality=95)
    file.write_bytes(file.read_bytes().ljust(20_000, b"\0"))  # of the same length as before
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 10**9))
    after = load(root, size=16)
    assert len(reads) == 8
    assert torch.equal(before.images[:2], after.images[:2])
    assert not torch.equal(before.images[2], after.images[2])
    rows = [(f"{i:05d}.jpg", 1, 1, 1, 200, 150) for i in range(1, 5)]
    write_annotations(annotations(root), rows)
    assert not torch.equal(load(root, size=16).images[0], after.images[0])


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "other"])
def test_a_damaged_cache_is_made_again(tmp_path, cache, monkeypatch, damage):
    root = make(tmp_path)
    first = load(root, size=16)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    other = b"\x02\x00\x00\x00\x00\x00\x00\x00{}"  # safetensors without any tensor
    file.write_bytes({"truncated": whole[:-50], "foreign": b"\x89PNG" * 99, "empty": b"", "other": other}[damage])
    reads = count_reads(monkeypatch)
    assert torch.equal(load(root, size=16).images, first.images) and len(reads) == 4
    assert file.read_bytes() == whole


def test_an_unwritable_cache_does_not_stop_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file where the folder should be")
    monkeypatch.setenv("DIFFUSION_UTILS_CACHE", str(tmp_path / "file" / "cache"))
    assert len(load(make(tmp_path), size=16).images) == 4


def test_a_full_disk_does_not_stop_the_work(tmp_path, cache, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", fail)
    assert len(load(make(tmp_path), size=16).images) == 4
    assert list(cache.iterdir()) == []


# ---------------------------------------------------------------- download


def test_download_without_kagglehub_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # makes the import fail
    text = "did not work.*press Download.*STANFORD_CARS_ROOT"
    with pytest.raises(OSError, match=text):
        stanford_cars.download()


def test_a_failing_download_says_why_and_what_to_do(monkeypatch):
    def fail(name):
        raise ConnectionError("no route to host")

    fake = types.SimpleNamespace(dataset_download=fail)
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    with pytest.raises(OSError, match="ConnectionError: no route to host.*in a browser"):
        stanford_cars.download()


def test_a_download_returns_its_folder(monkeypatch, tmp_path):
    asked = []
    fake = types.SimpleNamespace(dataset_download=lambda name: (asked.append(name), str(make(tmp_path)))[1])
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    assert len(load(stanford_cars.download(), size=16).images) == 4
    assert asked == [stanford_cars.KAGGLE_DATASET]


@pytest.mark.parametrize("words", [["--help"], ["stanford_cars"], ["--split", "test"], ["--out", "x"]])
def test_only_the_bare_command_downloads(monkeypatch, words):
    def fail(name):
        raise AssertionError("a download has begun")

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=fail))
    with pytest.raises(SystemExit):
        main(["download", *words])
    monkeypatch.setattr(sys, "argv", ["stanford_cars", *words])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has been imported before
        runpy.run_module("diffusion_utils.data.stanford_cars", run_name="__main__")


# ---------------------------------------------------------------- the real data

REAL = os.environ.get("STANFORD_CARS_ROOT")
needs_data = pytest.mark.skipif(not REAL, reason="set STANFORD_CARS_ROOT to test the real data")


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("real"))


@needs_data
def test_the_real_training_pictures(monkeypatch, real_cache):
    monkeypatch.setenv("DIFFUSION_UTILS_CACHE", real_cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cars = load(REAL, size=64)
    rows = loadmat(stanford_cars._inner(Path(REAL)) / "devkit" / "cars_train_annos.mat")
    assert len(cars.images) == rows["annotations"].size > 7000
    assert cars.images.shape[1:] == (3, 64, 64) and cars.skipped == []
    assert len(set(cars.names)) == len(cars.names) == len(cars.labels)
    assert len(cars.classes) == 196 and all(cars.classes)
    assert cars.labels.unique().tolist() == list(range(196))
    assert cars.images.flatten(1).float().std(1).min() > 5  # not one blank picture
    held_out = len(cars.part(True).names) / len(cars.names)
    assert 0.08 < held_out < 0.12


@needs_data
def test_every_real_class_has_a_body_type():
    _, classes = stanford_cars.read_annotations(REAL)
    kinds = [body_type(name) for name in classes]
    assert len(kinds) == 196 and set(kinds) == set(BODY_TYPES)
    # Where the name says it, the list of exceptions has no say: 16 names do not say it.
    plain = [n for n in classes if n.split()[-2].lower() in [k.lower() for k in BODY_TYPES] or " Cab " in n]
    assert len(plain) == 180
