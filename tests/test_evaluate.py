"""The command that evaluates weights, from the command line to the file it leaves."""

import json
import runpy
import sys

import pytest
import torch
from PIL import Image

from diffusion_utils import drawing, features, pretrained
from diffusion_utils import evaluate as evaluate_command
from diffusion_utils.data import to_uint8, toy_cars
from diffusion_utils.sampling import sample

TINY = {"name": "resnet", "channels": [8, 8], "stem": 2, "embedding_dim": 8}


class Coarse(torch.nn.Module):
    """Features in no time: every fourth pixel."""

    num_features = 48

    def forward(self, images):
        return images[:, :, ::4, ::4].flatten(1).float() / 255


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a network that draws noise at 16×16."""
    torch.manual_seed(0)
    net = pretrained.networks.build(**TINY).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    about = {
        "network": TINY,
        "prediction_type": "sample",
        "schedule": "cosine",
        "num_train_timesteps": 100,
        "zero_terminal_snr": False,
        "size": 16,
    }
    denoiser = pretrained.Denoiser(net, pretrained.make_schedule("cosine", 100), "sample")
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    pretrained.save(path, denoiser, about)
    return path


@pytest.fixture
def quick(monkeypatch):
    """Few toy cars and a quick extractor."""
    draw = toy_cars.load

    def load(count, size):
        cars = draw(64, size)
        return cars._replace(images=cars.images.repeat(-(-count // 64), 1, 1, 1)[:count])

    monkeypatch.setattr(toy_cars, "load", load)
    monkeypatch.setitem(features.EXTRACTORS, "coarse", Coarse)


def evaluate(weights, *arguments):
    own = ["--weights", weights, "--data", "toy_cars", "--extractor", "coarse", "--device", "cpu"]
    evaluate_command.main([str(a) for a in (*own, *arguments)])


def test_evaluate_writes_what_it_measured_and_how(tmp_path, weights, quick, capsys):
    out = tmp_path / "new" / "result.json"
    settings = ["--count", 70, "--sampler", "ddim", "--steps", 3, "--seed", 5]
    evaluate(weights, *settings, "--out", out)
    said, result = capsys.readouterr().out, json.loads(out.read_text())
    about = pretrained.card(weights)
    assert result["weights"] == str(weights) and result["parameters"] == about["parameters"]
    assert (result["sampler"], result["steps"], result["seed"], result["size"]) == ("ddim", 3, 5, 16)
    assert result["counts"] == {"generated": 70, "held_out": 512, "train": 8192}
    assert result["extractor"] == "coarse" and result["data"].startswith("toy cars")
    assert result["seconds_of_drawing"] >= 0 and {"machine", "torch", "date"} <= result.keys()
    # Noise is no car, and every figure is printed beside its floor.
    assert result["generated"]["kid"] > 10 * abs(result["floor"]["kid"])
    assert result["generated"]["fid"] > result["floor"]["fid"]
    lines = said.splitlines()
    assert lines[0].startswith("70 pictures of") and lines[1].split() == ["generated", "floor"]
    for line, (name, value) in zip(lines[2:], result["generated"].items(), strict=True):
        assert line.split() == [*name.split("_"), f"{value:g}", f"{result['floor'][name]:g}"]
    assert [p.name for p in out.parent.iterdir()] == ["result.json"]
    # The same command measures the same, with --out or without.
    evaluate(weights, *settings)
    assert capsys.readouterr().out == said


def test_pictures_are_those_of_their_seeds_in_whatever_batches(weights, monkeypatch):
    denoiser = pretrained.load(weights)
    monkeypatch.setattr(drawing, "BATCH", 2)
    drawn = drawing.draw(denoiser, range(3, 8), 16, "ddim", 2, "cpu")
    whole = to_uint8(sample(denoiser, range(3, 8), (3, 16, 16), "ddim", 2))
    assert drawn.dtype == torch.uint8 and (drawn.int() - whole.int()).abs().max() <= 1


ERRORS = {
    "weights": (["--weights", "nobodys"], "no weights named 'nobodys'"),
    "count": (["--count", 3], "--count must be at least 4"),
    "folder": (["--data", "no/such"], "no/such is not a folder: give the path of a folder"),
    "steps": (["--steps", 101], "in [1, 100], not 101"),
    "out": (["--out", "."], "--out . is a folder: give the name of a file"),
}


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("arguments, text", ERRORS.values(), ids=ERRORS)
def test_errors_are_one_sentence_and_leave_nothing(tmp_path, weights, quick, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    own = ["--weights", weights, "--data", "toy_cars", "--extractor", "coarse", "--out", "result.json"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, [*own, "--device", "cpu", *arguments])])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("diffusion_utils.evaluate", run_name="__main__")
    said = left.value.code
    assert said.startswith("error: ") and text in said and "\n" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_folder_without_held_out_pictures_is_refused(tmp_path, weights, quick):
    for i in range(5):
        Image.new("RGB", (16, 12), (i, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="holds too few pictures to keep 4 of them out of training"):
        evaluate(weights, "--data", tmp_path, "--count", 4)
