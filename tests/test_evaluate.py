"""The command that evaluates weights, from the command line to the file it leaves."""

import json

import pytest
import torch
from PIL import Image

from diffusion_utils import pipeline, pretrained
from diffusion_utils.commands import main
from diffusion_utils.data import toy_cars
from diffusion_utils.evaluation import Reference, features, reference
from diffusion_utils.pipeline import Pipeline


class Coarse(torch.nn.Module):
    """Features in no time: every fourth pixel."""

    num_features = 48

    def forward(self, images):
        return images[:, :, ::4, ::4].flatten(1).float() / 255


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_weights):
    """Weights of a network that draws noise at 16×16."""
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    return tiny_weights(path, network={"name": "resnet", "channels": [8, 8], "stem": 2, "embedding_dim": 8}, size=16)


@pytest.fixture
def quick(monkeypatch, tmp_path_factory):
    """Few toy cars, and a quick extractor in place of the default one."""
    draw = toy_cars.load

    def load(count, size):
        cars = draw(64, size)
        return cars._replace(images=cars.images.repeat(-(-count // 64), 1, 1, 1)[:count])

    monkeypatch.setattr(toy_cars, "load", load)
    monkeypatch.setitem(features.EXTRACTORS, features.DEFAULT, Coarse)
    monkeypatch.setitem(reference.OTHERS, features.DEFAULT, {})
    monkeypatch.setenv("DIFFUSION_UTILS_CACHE", str(tmp_path_factory.mktemp("coarse")))
    features.extractor.cache_clear()
    yield
    features.extractor.cache_clear()


def evaluate(weights, *arguments):
    own = ["--weights", weights, "--data", "toy_cars", "--device", "cpu"]
    return main(["evaluate", *map(str, [*own, *arguments])])


def test_evaluate_writes_what_it_measured_and_how(tmp_path, weights, quick, capsys):
    out = tmp_path / "new" / "result.json"
    settings = ["--count", 70, "--sampler", "ddim", "--steps", 3, "--seed", 5]
    assert evaluate(weights, *settings, "--out", out) == 0
    said, result = capsys.readouterr().out, json.loads(out.read_text())
    about = pretrained.card(weights)
    assert result["weights"] == str(weights) and result["parameters"] == about["parameters"]
    assert (result["sampler"], result["steps"], result["seed"], result["size"]) == ("ddim", 3, 5, 16)
    assert result["guidance_scale"] == 1 and result["condition"] is None
    assert result["counts"] == {"generated": 70, "held_out": 256, "train": 8192} and result["part"] == "test"
    assert result["extractor"] == features.DEFAULT and result["data"].startswith("toy cars")
    assert result["seconds_of_drawing"] >= 0 and {"machine", "torch", "date"} <= result.keys()
    # Noise is no car, and every figure is printed beside its floor.
    assert result["generated"]["kid"] > 10 * abs(result["floor"]["kid"])
    assert result["generated"]["fid"] > result["floor"]["fid"]
    lines = said.splitlines()
    assert lines[0].startswith("70 pictures of") and lines[1].split() == ["generated", "floor"]
    for line, (name, value) in zip(lines[2:], result["generated"].items(), strict=True):
        assert line.split() == [*name.split("_"), f"{value:g}", f"{result['floor'][name]:g}"]
    assert [p.name for p in out.parent.iterdir()] == ["result.json"]
    # What it measured are the pictures of these seeds, against these cars.
    cars = toy_cars.load(8704, 16).images
    drawn = pipeline.load(str(weights))(range(5, 75), sampler="ddim", steps=3)
    expected = Reference(cars[:8192], cars[8193::2]).evaluate(drawn)
    assert {key: result[key] for key in expected} == expected
    # Others are there to choose by.
    assert evaluate(weights, *settings, "--part", "validation", "--out", out) == 0
    chosen_by = json.loads(out.read_text())
    assert chosen_by["part"] == "validation" and "(validation)" in capsys.readouterr().out
    assert chosen_by["generated"] == Reference(cars[:8192], cars[8192::2]).evaluate(drawn)["generated"]
    assert chosen_by["generated"]["kid"] != result["generated"]["kid"]
    # The same command measures the same, with --out or without.
    assert evaluate(weights, *settings) == 0
    assert capsys.readouterr().out == said


def test_many_pictures_are_compared_in_groups_and_the_deviation_is_printed(tmp_path, weights, quick, capsys):
    out = tmp_path / "result.json"
    assert evaluate(weights, "--count", 520, "--sampler", "ddim", "--steps", 1, "--out", out) == 0
    result, lines = json.loads(out.read_text()), capsys.readouterr().out.splitlines()
    assert result["counts"]["generated"] == 512 and result["deviation"]["groups"] == 2
    assert lines[1].split() == ["generated", "floor", "deviation"]
    scored = (result[column]["fid"] for column in ("generated", "floor", "deviation"))
    assert next(line for line in lines if "fid" in line).split() == ["fid", *(f"{value:g}" for value in scored)]


def test_condition_and_guidance_reach_the_drawing_and_the_result(tmp_path, tiny_weights, quick, monkeypatch):
    weights = tiny_weights(tmp_path / "two.safetensors", conditions={"red": 0.5, "blue": 0.5}, size=16)
    drawn, draw = [], Pipeline.__call__
    monkeypatch.setattr(Pipeline, "__call__", lambda self, *a, **o: drawn.append(draw(self, *a, **o)) or drawn[-1])
    asked = ["--condition", "blue", "--guidance-scale", 2, "--interval", 10, 60, "--steps", 2, "--count", 5]
    assert evaluate(weights, *asked, "--out", tmp_path / "result.json") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["condition"], result["guidance_scale"], result["interval"]) == ("blue", 2, [10, 60])
    monkeypatch.undo()
    pipe = pipeline.load(str(weights))
    assert torch.equal(drawn[0], pipe(range(5), "blue", guidance_scale=2, interval=(10, 60), steps=2))
    assert not torch.equal(drawn[0], pipe(range(5), "red", guidance_scale=2, interval=(10, 60), steps=2))


ERRORS = {  # arguments, exit code, sentence
    "weights": (["--weights", "nobodys"], 1, "no weights named 'nobodys'"),
    "count": (["--count", 3], 1, "--count must be at least 4"),
    "folder": (["--data", "no/such"], 1, "no/such is not a folder: give the path of a folder"),
    "steps": (["--steps", 101], 1, "in [1, 100], not 101"),
    "out": (["--out", "."], 1, "--out . is a folder: give the name of a file"),
    "condition": (["--condition", "red"], 1, "takes no condition: leave it out"),
    "prompt": (["--prompt", "red"], 1, "takes no prompt: leave it out"),
    "extractor": (["--extractor", "vgg"], 2, "invalid choice 'vgg' for argument '--extractor'"),
    "interval": (["--interval", 60, 20], 2, "lowest and the highest timestep, such as 100 900, not (60, 20)"),
}


@pytest.mark.parametrize("arguments, code, text", ERRORS.values(), ids=ERRORS)
def test_errors_are_one_sentence_and_leave_nothing(
    tmp_path, weights, quick, monkeypatch, capsys, arguments, code, text
):
    monkeypatch.chdir(tmp_path)
    try:
        left = evaluate(weights, "--out", "result.json", *arguments)
    except SystemExit as stop:
        left = stop.code
    out, err = capsys.readouterr()
    shown = err.rpartition("\r")[2]  # a progress bar wipes itself away
    assert left == code and out == ""
    assert shown.startswith("error: ") and text in shown and shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_without_held_out_pictures_is_refused(tmp_path, weights, quick, capsys):
    for i in range(5):
        Image.new("RGB", (16, 12), (i, 0, 0)).save(tmp_path / f"{i}.png")
    assert evaluate(weights, "--data", tmp_path, "--count", 4) == 1
    assert "holds too few pictures to keep 4 of them out of training" in capsys.readouterr().err
