"""Own pictures from files: which are read, their range and shape, their classes; and that no cache is the wrong one."""

import io
import os
import shutil
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_utils.data import pictures, sets
from diffusion_utils.data.pictures import crop, is_held_out, load_folder, ratio
from diffusion_utils.training import Run


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A cache and a working directory of its own for each test."""
    monkeypatch.setenv("DIFFUSION_UTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def save(path, colour="red", size=(16, 16), **how):
    """A picture of one colour, with the folder it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **how)
    return path


def quietly(*arguments, **options):
    """A folder's pictures, where nothing may be left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_folder(*arguments, **options)


# ---------------------------------------------------------------- the range of pixels

STEPS = np.uint16(np.linspace(0, 65535, 16)[None].repeat(12, 0))  # from black on the left to white on the right


def stored(form, pixels=STEPS, **how):
    """A picture of 16 bits, as Pillow reads it from a file of this format."""
    file = io.BytesIO()
    if form == "PPM":
        file.write(b"P5 16 12 65535\n" + pixels.astype(">u2").tobytes())
    else:
        Image.fromarray(pixels).save(file, form, **how)
    file.seek(0)
    return Image.open(file)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_keep_their_range(form):
    row = np.asarray(crop(stored(form), None, 16))[8, :, 0].astype(int)
    assert np.abs(row - np.linspace(0, 255, 16)).max() < 16  # resampling is seen, clipping would be 200


@pytest.mark.parametrize("mode, order", [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2")])
def test_sixteen_bits_of_either_order_of_bytes(mode, order):
    image = Image.frombytes(mode, (8, 8), np.full((8, 8), 0x8001, order).tobytes())
    assert np.asarray(crop(image, None, 8)).tolist() == np.full((8, 8, 3), 128).tolist()


def test_a_tiff_says_what_is_white():
    row = np.asarray(crop(stored("TIFF", tiffinfo={262: 0}), None, 16))[8, :, 0].astype(int)
    assert row[0] > 240 and row[-1] < 15  # WhiteIsZero
    few = stored("TIFF", np.full((12, 16), 4095, np.uint16))
    few.tag_v2[258] = (12,)
    assert (np.asarray(crop(few, None, 8)) == 255).all()


def test_sixteen_bits_are_turned_upright_and_transparency_is_white():
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = 3  # upside down: what is on the right goes to the left
    row = np.asarray(crop(stored("PNG", exif=exif), None, 16))[8, :, 0]
    assert row[0] > 240 and row[-1] < 15
    clear = stored("PNG", np.zeros((12, 16), np.uint16), transparency=0)
    assert (np.asarray(crop(clear, None, 8)) == 255).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_unknown_range_are_skipped_with_a_sentence_and_a_count(tmp_path, mode):
    save(tmp_path / "pics/a.png")
    for name in "bc":
        Image.fromarray(np.full((16, 16), 300, {"I": np.int32, "F": np.float32}[mode])).save(
            tmp_path / f"pics/{name}.tif"
        )
    with pytest.warns(UserWarning, match=f"skipped 2 of 3 pictures: b.tif: .*nothing says .*mode {mode}.* is white"):
        assert load_folder(tmp_path / "pics", 8).names == ["a.png"]


# ---------------------------------------------------------------- the cache


def test_folders_alike_in_names_sizes_and_times_are_told_apart(tmp_path, monkeypatch):
    for where, colour in (("one", "black"), ("other", "white")):
        file = save(tmp_path / where / "pics/a.bmp", colour)
        os.utime(file, (1, 1))
        monkeypatch.chdir(tmp_path / where)
        assert load_folder("pics", 8).images.unique().tolist() == [0 if colour == "black" else 255]
    assert (tmp_path / "one/pics/a.bmp").stat().st_size == file.stat().st_size


def test_a_copy_comes_from_the_same_cache(tmp_path, monkeypatch):
    save(tmp_path / "pics/a.png")
    load_folder(tmp_path / "pics", 8)
    shutil.copytree(tmp_path / "pics", tmp_path / "copy")
    monkeypatch.setattr(pictures, "_read", None)  # would be called for what is not cached
    assert len(load_folder(tmp_path / "copy", 8).images) == 1


# ---------------------------------------------------------------- which files


@pytest.mark.parametrize("ending", ["jfif", "jpe", "ppm", "tga", "pcx", "JPEG", "jp2", "avif", "webp", "qoi"])
def test_what_pillow_reads_is_read(tmp_path, ending):
    form = Image.registered_extensions()[f".{ending.lower()}"]
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {form}")
    save(tmp_path / f"pics/a.{ending}", format=form)
    image = quietly(tmp_path / "pics", 8).images[0]
    assert (image.float().mean((1, 2)) - torch.tensor([255.0, 0, 0])).abs().max() < 8


def test_an_ending_that_says_nothing_does_not_matter(tmp_path):
    for name in ("IMG_0001", "photo.jpg_large", "caf\udce9"):  # the last one is no UTF-8
        save(tmp_path / "pics" / name, format="PNG")
    found = quietly(tmp_path / "pics", 8)
    assert found.names == ["IMG_0001", "caf\udce9", "photo.jpg_large"]
    assert len(found.part(True).names + found.part(False).names) == 3


def test_what_is_left_out_is_counted_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    save(tmp_path / "pics/a.png")
    for name in ("b.txt", "c.csv", "d", "e", "IMG_1.HEIC"):
        (tmp_path / "pics" / name).write_text("no picture")
    save(tmp_path / "pics/old/a.png")
    (tmp_path / "pics/.hidden").mkdir()
    (tmp_path / "pics/__MACOSX").mkdir()  # what a Mac leaves in archives
    with pytest.warns(UserWarning) as said:
        assert load_folder(tmp_path / "pics", 8).names == ["a.png"]
    assert len(said) == 1 and said[0].filename == __file__
    text = str(said[0].message)
    assert "subfolders: 1 (old)" in text and "files that are no pictures: 4 (b.txt, c.csv, d, …)" in text
    assert "pictures that need `pip install pillow-heif` or another format: 1 (IMG_1.HEIC)" in text
    (tmp_path / "pics/a.png").unlink()
    shutil.rmtree(tmp_path / "pics/old")
    with pytest.raises(ValueError, match="holds no pictures .*: found .* no pictures: 4 .*pip install pillow-heif"):
        load_folder(tmp_path / "pics")


WRONG = {  # what a file holds, and why it is skipped
    "empty": (b"", "a.png: empty"),
    "foreign": (b"no picture", "a.png: damaged, or no picture"),
    "large": (b"P6 20000 20000 255\n", "a.png: larger than 178 megapixels: make it smaller"),
    "half": (b"P6 20 20 255\n", "a.png: unreadable (image file is truncated"),
}


@pytest.mark.parametrize("contents, text", WRONG.values(), ids=WRONG)
def test_a_picture_that_cannot_be_read_is_named_with_its_reason(tmp_path, contents, text):
    save(tmp_path / "pics/b.png")
    (tmp_path / "pics/a.png").write_bytes(contents)
    with pytest.warns(UserWarning) as said:
        assert load_folder(tmp_path / "pics", 8, "1:1").names == ["b.png"]
    assert f"skipped 1 of 2 pictures: {text}" in str(said[0].message) and "a.png'" not in str(said[0].message)


def test_a_picture_that_may_not_be_read_is_not_called_damaged(tmp_path, as_nobody):
    save(tmp_path / "pics/a.png").chmod(0)
    assert as_nobody(lambda: load_folder(tmp_path / "pics", 8)).endswith("picture; the first: a.png: may not be read")


def test_files_of_another_kind_do_not_keep_pictures_out_of_the_cache(tmp_path, monkeypatch):
    save(tmp_path / "pics/a.png")
    (tmp_path / "pics/captions.txt").write_text("a: a red square")
    for _ in range(2):
        with pytest.warns(UserWarning, match="no pictures: 1"):
            load_folder(tmp_path / "pics", 8)
        monkeypatch.setattr(pictures, "_read", None)


def test_heic_is_read_where_its_plugin_is_installed(tmp_path, monkeypatch):
    save(tmp_path / "pics/a.heic", format="PNG")
    real, Image_open = (tmp_path / "pics/a.heic").read_bytes(), Image.open
    (tmp_path / "pics/a.heic").write_bytes(b"ftypheic")
    opener = lambda file: Image_open(io.BytesIO(real)) if str(file).endswith("heic") else Image_open(file)  # noqa: E731
    plugin = types.SimpleNamespace(register_heif_opener=lambda: monkeypatch.setattr(Image, "open", opener))
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    assert quietly(tmp_path / "pics", 8).names == ["a.heic"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    save(tmp_path / "pics/a.png")
    os.mkfifo(tmp_path / "pics/pipe")
    with pytest.warns(UserWarning, match="no pictures: 1 .pipe."):
        load_folder(tmp_path / "pics", 8)


def test_a_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    save(tmp_path / "home/pics/a.png")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert quietly("~/pics", 8).names == ["a.png"]


# ---------------------------------------------------------------- the window


@pytest.mark.parametrize("text, value", [("4:3", 4 / 3), ("1:1", 1), ("1.5", 1.5), ("2:3", 2 / 3), (None, 4 / 3)])
def test_an_aspect_is_width_to_height(text, value):
    assert ratio(text) == pytest.approx(value)


@pytest.mark.parametrize("text, stored", [("4 : 3", "4:3"), ("1.5", "3:2"), ("16:10", "8:5"), ("1:1", "1:1")])
def test_an_aspect_is_stored_in_one_form(text, stored):
    assert Run(Path("x"), aspect=text).aspect == stored


@pytest.mark.parametrize("text", ["0:1", "1:0", "4:3:2", "square", "-1", "nan", "inf", "9:1", " : ", ""])
def test_what_is_no_aspect_is_an_error(text):
    with pytest.raises(ValueError, match="aspect is width:height"):
        ratio(text)


@pytest.mark.parametrize(
    "shapes, aspect",
    [([(16, 16)] * 3, "1:1"), ([(20, 15)] * 3, "4:3"), ([(30, 16), (16, 16), (16, 16)], "1:1"), ([(15, 20)], "1:1")],
)
def test_square_pictures_stay_square(tmp_path, shapes, aspect):
    for i, shape in enumerate(shapes):
        save(tmp_path / f"pics/{i}.png", size=shape)
    assert quietly(tmp_path / "pics", 8).aspect == aspect


def test_the_window_has_the_aspect_that_was_asked_for(tmp_path):
    image = Image.new("RGB", (90, 90), "red")
    image.paste("blue", (0, 30, 90, 60))  # the middle third: the window of 3:1
    (tmp_path / "pics").mkdir()
    image.save(tmp_path / "pics/a.png")
    shown = {aspect: quietly(tmp_path / "pics", 9, aspect).images[0, 0] for aspect in ("1:1", "3:1", "1:3")}
    assert shown["3:1"].max() < 60 and shown["1:1"][0].min() > 200 and (shown["1:3"][:, 4] == shown["1:1"][:, 4]).all()


# ---------------------------------------------------------------- classes


@pytest.fixture
def pets(tmp_path):
    """Two classes with files of the same names, one without pictures, and files beside them."""
    for i in range(24):
        save(tmp_path / f"pets/dog/{i}.png", (200, i, 0))
        save(tmp_path / f"pets/cat/{i}.png", (0, i, 200))
    (tmp_path / "pets/empty").mkdir()
    save(tmp_path / "pets/cat/small/0.png")
    save(tmp_path / "pets/beside.png")
    (tmp_path / "pets/notes.txt").write_text("no picture")
    return tmp_path / "pets"


def test_subfolders_are_classes(pets):
    with pytest.warns(UserWarning) as said:
        found = load_folder(pets, 8, classes=True)
    for text in (
        "files beside the classes' folders: 2 (beside.png, notes.txt)",
        "folders in a class's folder: 1 (small)",
    ):
        assert text in str(said[0].message)
    assert "classes without a picture: 1 (empty)" in str(said[0].message) and len(said) == 1
    assert found.names == sorted(found.names) and found.names[0] == "cat/0.png" and len(found.names) == 48
    for image, name, label in zip(found.images, found.names, found.labels.tolist()):
        assert found.classes[label] == name.split("/")[0]
        assert image[0, 0, 0] == (200 if name.startswith("dog") else 0) and image[1, 0, 0] == int(name[4:-4])


def test_pictures_beside_subfolders_are_read_unless_classes_are_asked_for(pets):
    only = "only the 1 picture beside the subfolders is used; move it away to use the folders as classes"
    with pytest.warns(UserWarning, match=rf"subfolders: 3 \(cat, dog, empty\).*no pictures: 1.*; {only}"):
        assert load_folder(pets, 8).names == ["beside.png"]
    (pets / "beside.png").unlink()
    with pytest.warns(UserWarning, match="beside the classes' folders: 1"):
        assert len(load_folder(pets, 8).images) == 48  # of all classes


@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_set_of_classes(pets):
    for name in ("0.png", "1.png"):
        save(pets / "rare" / name)
    save(pets / "held out" / next(f"{i}.png" for i in range(99) if is_held_out(f"{i}.png")))
    found = sets.load(str(pets), 8, "class")
    train = sum(not is_held_out(f"{i}.png") for i in range(24))
    # A class that would be held out as a whole is learnt instead.
    assert found.classes == ["cat", "dog", "held out", "rare"] and len(found.held_out) == 48 - 2 * train
    assert found.labels.tolist() == [0] * train + [1] * train + [2] + [3] * 2
    network = found.conditional({"name": "resnet"})
    cond, entries = found.cond(network)
    assert network["cond_dim"] == 4 and (cond.sum(1) == 1).all()
    assert [*entries["conditions"]] == found.classes and sum(entries["conditions"].values()) == pytest.approx(1)
    assert entries["conditions"]["rare"] == pytest.approx(2 / len(found.images)) and "in 4 classes" in found.description
    assert sets.condition_of({"network": network, **entries}) == "class"
    with pytest.raises(ValueError, match="takes 5 classes, .*pets has 4"):
        found.cond({"name": "resnet", "cond_dim": 5})


def test_a_class_whose_name_is_no_utf_8_can_be_written_down(tmp_path):
    save(tmp_path / "pets/caf\udce9/a.png")
    assert quietly(tmp_path / "pets", 8, classes=True).classes == [r"caf\xe9"]


@pytest.mark.parametrize(
    "data, message",
    [
        ("pets/cat/small", "small has no subfolders: the condition class takes one for each class"),
        ("toy_cars", "no classes are known of toy_cars"),
        ("none", "cannot be called none"),
        (
            "https://a.org/pics.zip",
            "https://a.org/pics.zip is an address: download the pictures first, and give the fol",
        ),
    ],
)
def test_where_there_are_no_classes_one_sentence_says_so(pets, data, message):
    save(pets.parent / "none/none/a.png")
    with pytest.raises(ValueError, match=message):
        sets.load(data, 16, "class")


def test_a_name_that_is_none_says_which_there_are():
    with pytest.raises(FileNotFoundError, match="toy is not a folder: .* of pictures, or stanford_cars or toy_cars"):
        sets.load("toy", 8)


def test_the_aspect_is_that_of_own_pictures(pets):
    for data in ("toy_cars", "stanford_cars"):
        with pytest.raises(ValueError, match="cut to 4:3, not to 1:1"):
            sets.load(data, 16, aspect="1:1")
