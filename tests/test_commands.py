"""The commands, from the command line to the files they leave."""

import errno
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_utils import networks, pretrained
from diffusion_utils.commands import COMMANDS, main, parse
from diffusion_utils.commands.train import prepare
from diffusion_utils.data import sets, stanford_cars, to_float, toy_cars
from diffusion_utils.data.pictures import is_held_out
from diffusion_utils.networks import presets
from diffusion_utils.pipeline import Pipeline
from diffusion_utils.prediction import Denoiser
from diffusion_utils.training import TrainConfig, load_checkpoint, read_log
from diffusion_utils.training.arithmetic import precision_on
from diffusion_utils.training.batches import make_batch

ROOT = Path(__file__).parent.parent
TINY = {"name": "resnet", "channels": [8, 8], "stem": 2, "embedding_dim": 8}
COMMON = [
    "--network",
    json.dumps(TINY),
    "--batch-size",
    8,
    "--warmup-steps",
    2,
    "--log-every",
    2,
    "--mixed-precision",
    "no",
    "--compile",
    "no",
]


@pytest.fixture
def few_toys(monkeypatch):
    """The thousands of toy cars that a run draws, as copies of 32: drawing them takes seconds."""
    draw = toy_cars.load

    def load(count, size):
        cars = draw(32, size)
        copies = -(-count // 32)
        return cars._replace(images=cars.images.repeat(copies, 1, 1, 1)[:count])

    monkeypatch.setattr(toy_cars, "load", load)


@pytest.fixture
def folder(tmp_path):
    """Forty small pictures of one's own."""
    where = tmp_path / "pictures"
    where.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 12, 16, 3), np.uint8)
    for i, picture in enumerate(noise):
        Image.fromarray(picture).save(where / f"{i:02d}.png")
    return where


def train(*arguments):
    parse(["train", *map(str, arguments)])()  # as main does, but errors come through


def files(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != ".lock")


@pytest.fixture
def error(capsys):
    """Function: (*arguments) to what `python -m diffusion_utils …` exits with, and the one line it says."""

    def failing(*arguments, bar=False):
        """bar: training shows its progress before."""
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
        written, said = capsys.readouterr()
        said = said[said.rindex("error: ") :] if bar else said
        assert (
            (bar or written == "") and said.startswith("error: ") and said.endswith("\n") and said.count("\n") == 1
        ), said
        return code, said[:-1]

    return failing


# ---------------------------------------------------------------- training


def test_a_run_on_toy_cars_from_start_to_finish(tmp_path, few_toys, capsys):
    out = tmp_path / "new" / "run"
    train("--data", "toy_cars", "--out", out, "--steps", 6, "--size", 16, *COMMON, "--mixed-precision", "auto")
    assert files(out) == [
        "checkpoint.pt",
        "log.jsonl",
        "run.json",
        "samples.png",
        "weights.json",
        "weights.safetensors",
    ]
    assert [r["step"] for r in read_log(out / "log.jsonl")] == [2, 4, 6]
    run = json.loads((out / "run.json").read_text())
    assert (run["data"], run["size"], run["config"]["steps"]) == ("toy_cars", 16, 6)
    said = capsys.readouterr().out
    assert f"48 images: {out}/weights.safetensors, samples.png" in said

    about = pretrained.card(out / "weights.safetensors")
    assert about["network"] == TINY and about["prediction_type"] == "sample"
    assert (about["size"], about["steps"], about["images_seen"], about["seed"]) == (16, 6, 48, 0)
    assert about["mixed_precision"] == precision_on(torch.device("cpu"))  # what was chosen, not "auto"
    assert about["data"] == "toy cars, 8192 drawn at 16×16" and "Apache-2.0" in about["licence"]
    loss = read_log(out / "log.jsonl")[-1]["loss"]
    assert about["training_loss"] == pytest.approx(loss, abs=1e-4)
    errors = about["held_out_error_of_x0_as_share_of_variance"]
    assert list(errors) == ["t=99", "t=299", "t=499", "t=699", "t=899"]
    assert all(0 < error < 20 for error in errors.values())
    assert about["macs"] > 0 and about["parameters"] > 0 and about["config"] == run["config"]

    # The weights are the moving average, in half precision.
    ema = load_checkpoint(out / "checkpoint.pt")["ema"]
    for name, value in pretrained.load(out / "weights.safetensors").net.state_dict().items():
        assert torch.equal(value, ema[f"module.{name}"].half().float())

    with Image.open(out / "samples.png") as image:
        assert image.format == "PNG" and image.width > image.height  # 8 × 8 pictures at 4:3
        assert np.asarray(image).std() > 1


def test_resume_goes_on_with_the_settings_of_the_run(tmp_path, few_toys, capsys):
    own = ["--size", 16, "--learning-rate", 2e-3, "--seed", 5]
    train("--out", tmp_path, "--steps", 4, *own, *COMMON)
    first = (tmp_path / "weights.safetensors").read_bytes()
    card = (tmp_path / "weights.json").read_bytes()
    (tmp_path / "weights.safetensors").unlink()  # as if the run had died just before it wrote them
    (tmp_path / "weights.json").unlink()
    train("--out", tmp_path, "--resume")
    assert "had already used its budget: raise --steps" in capsys.readouterr().out
    assert (tmp_path / "weights.safetensors").read_bytes() == first
    assert json.loads((tmp_path / "weights.json").read_bytes()) == json.loads(card)
    train("--out", tmp_path, "--resume", "--steps", 8, "--log-every", 2)  # nothing else is repeated
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [2, 4, 6, 8]
    about = pretrained.card(tmp_path / "weights.safetensors")
    assert about["steps"] == 8 and about["config"]["learning_rate"] == 2e-3 and about["seed"] == 5
    assert about["network"] == TINY and about["size"] == 16
    assert (tmp_path / "weights.safetensors").read_bytes() != first
    assert json.loads((tmp_path / "run.json").read_text())["config"]["steps"] == 8


def test_a_run_that_died_before_its_first_record_goes_on_from_what_its_folder_says(tmp_path, few_toys, monkeypatch):
    own = ["--size", 16, "--steps", 4, "--learning-rate", 2e-3, "--prediction-type", "edm", *COMMON]

    def dies(*_):  # as by kill -9, in the first step
        raise SystemExit(9)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Denoiser, "loss", dies)
        train("--out", tmp_path, *own)
    assert files(tmp_path) == ["log.jsonl", "run.json"]
    train("--out", tmp_path, "--resume")
    about = pretrained.card(tmp_path / "weights.safetensors")
    assert about["steps"] == 4 and about["config"]["learning_rate"] == 2e-3 and about["network"] == TINY


def test_a_run_goes_on_with_its_own_pictures_wherever_they_are(tmp_path, folder, monkeypatch, error):
    monkeypatch.chdir(tmp_path)
    train("--data", "pictures", "--out", "run", "--steps", 2, "--size", 8, *COMMON)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train("--out", "../run", "--resume", "--steps", 4)

    new = folder.rename(tmp_path / "moved")
    (tmp_path / "run").rename(tmp_path / "too")
    resume = ["train", "--out", tmp_path / "too", "--resume", "--steps", 6]
    before = {p.name: p.read_bytes() for p in (tmp_path / "too").iterdir()}
    code, said = error(*resume)
    assert code == 1 and f"{folder} is not a folder" in said and said.endswith("say with --data where they are now")
    code, said = error(*resume, "--data", "toy_cars")
    assert code == 1 and "too was begun with other pictures than those in toy_cars: say with --data where" in said
    other = new / "00.png"
    kept = other.read_bytes()
    Image.new("RGB", (16, 12), "white").save(other)  # one picture of forty
    for data in ("../moved", new):
        code, said = error(*resume, "--data", data)
        assert code == 1 and f"too was begun with other pictures than those in {tmp_path}" in said
    assert {p.name: p.read_bytes() for p in (tmp_path / "too").iterdir()} == before
    other.write_bytes(kept)
    train(*resume[1:], "--data", "../moved")
    train(*resume[1:-1], 8)  # and it knows the new place
    assert pretrained.card(tmp_path / "too" / "weights.safetensors")["steps"] == 8


def run_and_card(out):
    run, about = json.loads((out / "run.json").read_text()), pretrained.card(out / "weights.safetensors")
    assert about["sigma_data"] == about["config"]["sigma_data"] == run["config"]["sigma_data"]
    assert pretrained.load(out / "weights.safetensors").sigma_data == about["sigma_data"]
    return about


def test_edm_measures_its_pictures_once(tmp_path, folder, monkeypatch):
    out = tmp_path / "run"
    train("--data", folder, "--out", out, "--steps", 2, "--size", 8, "--prediction-type", "edm", *COMMON)
    measured = to_float(sets.load(str(folder), 8).images).square().mean().sqrt().item()
    about = run_and_card(out)
    assert about["sigma_data"] == pytest.approx(measured, abs=1e-4) != 0.5
    monkeypatch.setitem(prepare.__globals__, "root_mean_square", lambda images: pytest.fail("measured again"))
    train("--out", out, "--resume", "--steps", 4)
    again = run_and_card(out)
    assert again["steps"] == 4 and again["sigma_data"] == about["sigma_data"]


def test_a_given_sigma_data_is_kept(tmp_path, folder):
    out = tmp_path / "run"
    own = ["--size", 8, "--prediction-type", "edm", "--sigma-data", 0.3, "--optimizer", "muon"]
    train("--data", folder, "--out", out, "--steps", 2, *own, *COMMON)
    train("--out", out, "--resume", "--steps", 4)
    about = run_and_card(out)
    assert about["sigma_data"] == 0.3 and about["steps"] == 4 and about["config"]["optimizer"] == "muon"


NO_RUN = "holds no run to go on with: leave --resume out to begin one"


@pytest.mark.parametrize(
    "left, text", [([], NO_RUN), ([".lock", "log.jsonl"], NO_RUN), (["checkpoint.pt"], "is missing")]
)
def test_resume_without_a_run_is_refused_before_the_work(tmp_path, error, monkeypatch, left, text):
    monkeypatch.setattr(sets, "load", lambda *_: pytest.fail("loaded the pictures"))
    out = tmp_path / "run"
    for name in left:
        out.mkdir(exist_ok=True)
        (out / name).touch()
    code, said = error("train", "--out", out, "--resume", "--steps", 2)
    assert code == 1 and said.startswith(f"error: {out}") and text in said
    assert left == (sorted(path.name for path in out.iterdir()) if left else []) and out.exists() == bool(left)


def test_a_run_that_found_no_room_to_begin_begins_when_the_command_is_given_again(tmp_path, folder, error, monkeypatch):
    arguments = ["train", "--data", folder, "--out", tmp_path / "run", "--steps", 2, "--size", 8, *COMMON]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setitem(prepare.__globals__, "write_json", full)
        code, said = error(*arguments)
    assert code == 1 and said.endswith("no checkpoint was written yet; make room and give the same command again")
    assert files(tmp_path / "run") == ["log.jsonl"]
    train(*arguments[1:])
    assert pretrained.card(tmp_path / "run" / "weights.safetensors")["steps"] == 2


PLACES = {  # --data, --out, and what is said
    "the same": (
        "pictures",
        "pictures",
        "--out {out} lies in the folder of the pictures, --data: choose another place",
    ),
    "inside": ("pictures", "pictures/a/run", "lies in the folder of the pictures, --data: choose another place"),
    "by another way": ("pictures", "pictures/../pictures/run", "lies in the folder of the pictures"),
    "a run": ("run", "new", "--data {data} is the folder of a run, not of pictures to learn from: choose another"),
}


@pytest.mark.parametrize("data, out, text", PLACES.values(), ids=PLACES)
def test_the_grids_of_a_run_do_not_become_pictures_to_learn_from(tmp_path, folder, error, data, out, text):
    (tmp_path / "run").mkdir()
    for name in ("run.json", "samples.png"):
        (tmp_path / "run" / name).touch()
    before = sorted(tmp_path.rglob("*"))
    data, out = tmp_path / data, tmp_path / out
    code, said = error("train", "--data", data, "--out", out, "--steps", 1)
    assert code == 1 and text.format(data=data, out=out) in said and sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_own_pictures_keeps_some_out(tmp_path, folder):
    out = tmp_path / "run"
    train("--data", folder, "--out", out, "--images", 16, "--size", 8, *COMMON)
    about = pretrained.card(out / "weights.safetensors")
    held_out = sum(is_held_out(f"{i:02d}.png") for i in range(40))
    assert 1 < held_out < 10
    assert about["data"] == f"own pictures, {40 - held_out} cropped to 8×8" and about["steps"] == 2
    assert "pictures it was trained on" in about["licence"]


def test_weights_to_begin_with_bring_their_aspect(tmp_path, folder, weights):
    for file in folder.iterdir():
        Image.new("RGB", (12, 12)).save(file)
    said = ["--data", folder, "--out", tmp_path / "run", "--steps", 1]
    assert configured(*said, "--start", weights, *COMMON[2:]).run.aspect == "4:3"
    assert configured(*said, "--start", weights, "--aspect", "1:1", *COMMON[2:]).run.aspect == "1:1"
    assert configured(*said, "--size", 8, *COMMON).run.aspect == "1:1"


def test_a_folder_with_the_name_of_known_pictures_is_not_taken_for_them(tmp_path, monkeypatch, few_toys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy_cars").mkdir()
    with pytest.warns(UserWarning, match="--data toy_cars does not mean the folder here, which is --data ./toy_cars"):
        assert configured("--out", "x", "--steps", 1, "--size", 16, *COMMON).run.data == "toy_cars"


def test_too_little_memory_is_one_sentence(tmp_path, folder, error, monkeypatch):
    def full(*_):
        torch.empty(10**15)

    monkeypatch.setattr(Denoiser, "loss", full)
    code, said = error(
        "train", "--data", folder, "--out", tmp_path / "run", "--steps", 1, "--size", 8, *COMMON, bar=True
    )
    assert code == 1 and "not enough memory for batches of 8: lower --batch-size or --size, or give" in said


@pytest.mark.parametrize("count", [1, 2, 13, 30])
def test_very_few_pictures_are_all_used(tmp_path, folder, count, capsys):
    """With 13 and 30 one is held out, and of a single picture there is no variance to measure."""
    for file in sorted(folder.iterdir())[count:]:
        file.unlink()
    pictures = sets.load(str(folder), 8)
    assert torch.equal(pictures.images, pictures.held_out) and len(pictures.images) == count
    train("--data", folder, "--out", tmp_path / "run", "--steps", 1, "--size", 8, *COMMON)
    plural = "s" * (count > 1)
    assert f"{count} picture{plural} to learn from, and to measure with: too few to hold any" in capsys.readouterr().out
    card = pretrained.card(tmp_path / "run" / "weights.safetensors")
    assert len(card["training_error_of_x0_as_share_of_variance"]) == (0 if count == 1 else 5)
    assert not any(name.startswith("held_out") for name in card)  # since none are


def test_grids_are_drawn_on_the_way(tmp_path, folder):
    out = tmp_path / "run"
    own = ["--steps", 6, "--size", 8, "--sample-every", 4]
    train("--data", folder, "--out", out, *own, *COMMON)
    assert [f for f in files(out) if f.startswith("samples")] == ["samples.png", "samples_0000004.png"]


def configured(*arguments):
    """What a command line asks to be trained, with all that depends on the pictures."""
    (run,) = parse(["train", *map(str, arguments)]).args
    return prepare(run)


@pytest.mark.parametrize("between", [" ", "="])
def test_a_tilde_means_the_home_folder(tmp_path, monkeypatch, folder, between):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    given = {"out": "~/runs/x", "data": f"~/{folder.name}", "autoencoder": "~/a.safetensors", "start": "~"}
    words = " ".join(f"--{flag}{between}{path}" for flag, path in given.items()).split()
    (run,) = parse(["train", *words, "--steps", "1"]).args
    assert run.out == tmp_path / "runs/x" and run.data == str(folder) and run.start == str(tmp_path)
    assert run.autoencoder == str(tmp_path / "a.safetensors")
    words = ["sample", "--weights", "~/w", "--out", "x", "--prompt", "~ a car", "a~/b"]
    asked = parse(words).keywords
    assert asked["weights"] == str(tmp_path / "w") and asked["prompt"] == ("~ a car", "a~/b")


def test_options_reach_the_configuration(few_toys):
    arguments = (
        "--out x --minutes 3 --prediction-type edm --schedule linear --batch-size 9 "
        "--seed 4 --num-train-timesteps 50 --weight-decay 0.5 --decay-fraction 0.1 --ema-decay 0.9 "
        "--min-snr-gamma 5 --snr-floor 0.5 --zero-terminal-snr --checkpoint-every 7 --warmup-steps 3 --sigma-data 0.4 "
        "--timestep-sampling lognormal --optimizer muon --no-flip --clip-grad-norm 0.5"
    )
    job = configured(*arguments.split())
    run = job.run.to_json()
    config = job.run.config
    assert run.pop("config") == asdict(config) and job.run.out == Path("x") and job.before == {}
    assert run == {
        "data": "toy_cars",
        "size": 32,
        "aspect": None,
        "condition": None,
        "autoencoder": None,
        "start": None,
        "branch": None,
        "sample_every": 2000,
        "snapshot_images": 0,
    }
    assert config.network == presets.TOY
    expected = {
        "minutes": 3,
        "steps": None,
        "prediction_type": "edm",
        "schedule": "linear",
        "batch_size": 9,
        "seed": 4,
        "num_train_timesteps": 50,
        "weight_decay": 0.5,
        "decay_fraction": 0.1,
        "ema_decay": 0.9,
        "min_snr_gamma": 5,
        "snr_floor": 0.5,
        "zero_terminal_snr": True,
        "checkpoint_every": 7,
        "warmup_steps": 3,
        "sigma_data": 0.4,
        "timestep_sampling": "lognormal",
        "optimizer": "muon",
        "flip": False,
        "clip_grad_norm": 0.5,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    rest = {name: value for name, value in asdict(TrainConfig()).items() if name not in {*expected, "network"}}
    assert {name: getattr(config, name) for name in rest} == rest  # and nothing else is touched


IGNORED = {  # options that would change nothing, and those that they belong to
    "feature_weight": (
        "--feature-weight 1 --objective autoencoder",
        "feature_weight compares the picture that the network answers with",
    ),
    "kl_weight": ("--kl-weight 0.1", "--kl-weight says something only with --objective autoencoder: leave it out"),
    "sigma_data": ("--sigma-data 0.3", "--sigma-data says something only with --prediction-type edm: leave it out"),
    "cond_dropout": ("--cond-dropout 0.2", "--cond-dropout says something only with --condition body_type or cl"),
    "of noise": ("--cond-dropout 0 --condition low_resolution", "--cond-dropout says something only with --condition"),
    "schedule": ("--objective autoencoder --schedule linear", "--schedule says something only with --objective denois"),
    "T": ("--objective autoencoder --num-train-timesteps 9", "--num-train-timesteps says something only with --object"),
    "x": ("--objective autoencoder --prediction-type edm", "--prediction-type says something only with --objective"),
    "no signal": ("--prediction-type epsilon --zero-terminal-snr", "epsilon prediction cannot learn where no signal"),
    "no budget": ("", "say when to stop: give steps, images or minutes"),
    "network": ('--network {"name":"vit"}', "unknown network 'vit'"),
    "size": ("--size 10", "--size 10 does not fit the network, which takes multiples of its stride, 8: give --size 16"),
    "latents": ("--size 40 --autoencoder stanford-cars-autoencoder-4", "its stride, 16: give --size 48, or another"),
    "consistency": ("--objective consistency", "give start (--start WEIGHTS)"),
    "parameters": ('--network {"name":"resnet","channels":[9000,9000]}', "parameters: 1,000,000,000 at most"),
    "an option": ('--network {"name":"resnet","chanels":[8]}', "has no option 'chanels': choose one of channels, "),
    "enlarging": (
        '--network {"name":"super_resolution"}',
        "lacks net: give the picture network alone, and --condition l",
    ),
    "start": ("--start stanford-cars-autoencoder-4", "autoencoder-4 is an autoencoder: add --objective autoencoder"),
    "no start": ("--start toy-cars-resnet --objective autoencoder", "is no autoencoder: leave --objective autoenc"),
    "adapters of nothing": ("--lora 4", "--lora adapts a trained network: give --start WEIGHTS"),
    "adapters of pixels": ("--objective autoencoder --lora 4", "lora adapts a denoiser: leave it out with objective"),
    "adapters for words": (
        "--start toy-cars-resnet --condition caption --lora 4",
        "adapters cannot learn words, which toy-cars-resnet does not know: leave --lora out",
    ),
}


@pytest.mark.parametrize("arguments, text", IGNORED.values(), ids=IGNORED)
def test_what_is_wrong_with_the_options_is_said_before_the_work(tmp_path, error, monkeypatch, arguments, text):
    monkeypatch.setattr(sets, "load", lambda *_: pytest.fail("loaded the pictures"))
    budget = ["--steps", 1] if arguments else []
    code, said = error("train", "--out", tmp_path / "run", *budget, *arguments.split())
    assert code in (1, 2) and text in said and not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [10, 1])
def test_a_run_of_few_timesteps_is_drawn_in_as_many(tmp_path, folder, count):
    own = ["--steps", 2, "--size", 8, "--num-train-timesteps", count]
    train("--data", folder, "--out", tmp_path / "run", *own, *COMMON)
    assert {"weights.safetensors", "samples.png"} <= {*files(tmp_path / "run")}


@pytest.mark.parametrize("flag, mirrored", [([], True), (["--no-flip"], False)])
def test_own_pictures_that_are_bright_on_the_left_stay_so_without_mirroring(tmp_path, flag, mirrored):
    (tmp_path / "pictures").mkdir()
    picture = np.zeros((12, 16, 3), np.uint8)
    picture[:, :8] = 255
    for i in range(40):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{i:02d}.png")
    job = configured(
        "--data", tmp_path / "pictures", "--out", tmp_path / "x", "--size", 8, "--steps", 1, *flag, *COMMON
    )
    x0 = make_batch(job.images, 0, replace(job.run.config, batch_size=64))[0]
    bright_on_the_right = (x0[..., 4:].mean((1, 2, 3)) > x0[..., :4].mean((1, 2, 3))).sum().item()
    assert 16 < bright_on_the_right < 48 if mirrored else bright_on_the_right == 0


def test_snapshots_are_kept_every_so_many_pictures_and_can_be_loaded(tmp_path, folder):
    out = tmp_path / "run"
    own = ["--steps", 9, "--size", 8, "--sample-every", 0, "--snapshot-images", 24]
    train("--data", folder, "--out", out, *own, *COMMON)  # records at 16, 32, 48, 64 and 72 pictures
    kept = [f for f in files(out / "snapshots") if f.endswith(".safetensors")]
    assert kept == [f"weights_{n:09d}.safetensors" for n in (24, 48, 72)]
    seen = [pretrained.card(out / "snapshots" / f)["images_seen"] for f in kept]
    assert seen == [32, 48, 72]
    paths = (out / "snapshots" / kept[-1], out / "weights.safetensors")
    last, final = (pretrained.load(path).net.state_dict() for path in paths)
    assert all(torch.equal(last[key], final[key]) for key in final)


def test_without_the_option_there_are_no_snapshots(tmp_path, folder):
    train("--data", folder, "--out", tmp_path / "run", "--steps", 3, "--size", 8, *COMMON)
    assert not (tmp_path / "run" / "snapshots").exists()


@pytest.fixture
def few_cars(monkeypatch):
    """Forty pictures in place of Stanford Cars, of three classes."""
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    classes = ["BMW M5 Sedan 2010", "Volvo XC90 SUV 2007", "Ford F-150 Regular Cab 2012"]
    cars = stanford_cars.CarPictures(images, [f"{i:05d}.jpg" for i in range(40)], torch.arange(40) % 3, classes, [])
    monkeypatch.setattr(stanford_cars, "load", lambda size: cars)
    return cars.part(held_out=False)


def test_a_run_learns_the_body_types(tmp_path, few_cars, monkeypatch):
    seen = []
    loss = Denoiser.loss
    argument = list(inspect.signature(loss).parameters).index("cond")
    monkeypatch.setattr(Denoiser, "loss", lambda *given: seen.append(given[argument]) or loss(*given))
    out = tmp_path / "run"
    own = ["--data", "stanford_cars", "--condition", "body_type", "--cond-dropout", 0.5, "--out", out]
    train(*own, "--steps", 4, "--size", 8, *COMMON)
    rows = torch.cat(seen)
    kinds = stanford_cars.BODY_TYPES
    learnt = {kinds[i] for i in rows.argmax(1)[rows.any(1)]}
    assert rows.shape == (32, 9) and learnt == {"sedan", "SUV", "pickup"}
    assert set(rows.sum(1).tolist()) == {0.0, 1.0}
    card = pretrained.card(out / "weights.safetensors")
    count = few_cars.labels.bincount() / len(few_cars.labels)
    assert card["network"]["cond_dim"] == 9 and list(card["conditions"]) == list(kinds)
    assert [card["conditions"][kind] for kind in ("sedan", "SUV", "pickup")] == pytest.approx(count.tolist())
    # It goes on with the same condition, without being asked again.
    train("--out", out, "--resume", "--steps", 6, "--size", 8)
    assert torch.cat(seen).shape == (48, 9)


def test_only_stanford_cars_has_body_types(tmp_path, folder):
    with pytest.raises(ValueError, match="--condition body_type goes with --data stanford_cars"):
        train("--data", folder, "--condition", "body_type", "--out", tmp_path / "run", "--steps", 1, *COMMON)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("data", sorted(presets.PRESETS))
def test_the_presets_are_below_a_million_parameters_and_fit_their_size(data):
    preset = presets.PRESETS[data]
    net = networks.build(**preset["network"])
    assert sum(p.numel() for p in net.parameters()) <= 1_000_000
    size = preset["size"]
    with torch.no_grad():
        assert net(torch.zeros(1, 3, size, size), torch.tensor([3])).shape == (1, 3, size, size)


# ---------------------------------------------------------------- stopping


def python(*arguments):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def wait_for_log(out, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (out / "log.jsonl").is_file() and len(read_log(out / "log.jsonl")) > 2:
            return
        time.sleep(0.02)


def assert_stopped(out, said):
    step = load_checkpoint(out / "checkpoint.pt")["step"]
    learnt, stopped = said.splitlines()
    assert learnt == "37 pictures to learn from, 3 held out to measure with"
    assert stopped == f"stopped at step {step} and saved; go on with --resume --out {out}"
    assert step == read_log(out / "log.jsonl")[-1]["step"] and 4 < step < 10**6
    train("--out", out, "--resume", "--steps", step + 2)  # as it says
    assert load_checkpoint(out / "checkpoint.pt")["step"] == step + 2
    assert (out / "weights.safetensors").is_file()


def test_sigterm_saves_says_how_to_go_on_and_exits_with_0(tmp_path, folder):
    out = tmp_path / "run"
    arguments = ["--data", folder, "--out", out, "--steps", 10**6, "--size", 8, *COMMON]
    process = python("-m", "diffusion_utils", "train", *arguments)
    wait_for_log(out)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in errors, errors
    assert_stopped(out, said)


def test_ctrl_c_does_the_same(tmp_path, folder, capsys):
    out = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT)

    def press():
        wait_for_log(out)
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    train("--data", folder, "--out", out, "--steps", 10**6, "--size", 8, *COMMON)
    finger.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert_stopped(out, capsys.readouterr().out)


# ---------------------------------------------------------------- errors


def test_an_error_is_one_line_without_a_traceback(tmp_path):
    missing = tmp_path / "no"
    arguments = ["--data", missing, "--out", tmp_path, "--steps", 1]
    process = python("-m", "diffusion_utils", "train", *arguments)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and said == ""
    assert len(errors.splitlines()) == 1
    assert errors.startswith(f"error: {missing} is not a folder: give the path of a folder")


TRAIN_ERRORS = {
    "no budget": ([], "say when to stop"),
    "network": (["--steps", 1, "--network", '{"name": "vit"}'], "unknown network 'vit'"),
    "size": (["--steps", 1, "--size", 10, "--network", json.dumps(TINY)], "of its stride, 4: give --size 12"),
    "no cars": (["--steps", 1, "--data", "stanford_cars"], "Stanford Cars was not found"),
}


@pytest.mark.parametrize("arguments, text", TRAIN_ERRORS.values(), ids=TRAIN_ERRORS)
def test_errors_of_training_say_what_is_wrong(tmp_path, folder, monkeypatch, error, arguments, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STANFORD_CARS_ROOT", raising=False)
    own = ["--data", folder, "--out", tmp_path / "run", "--compile", "no"]
    code, said = error("train", *own, *arguments)
    assert code == 1 and text in said


TRAIN = ["train", "--out", "run", "--steps", 1]
EXAMPLE = """'{"name": "resnet", "stem": 4}'"""
UNREADABLE = {
    "command": (["paint"], "paint"),
    "flag": ([*TRAIN, "--colour", "red"], "--colour"),
    "no folder": (["train", "--steps", 1], "--out"),
    "no number": ([*TRAIN, "--batch-size", "many"], "--batch-size"),
    "prediction": ([*TRAIN, "--prediction-type", "x"], "--prediction-type"),
    "optimizer": ([*TRAIN, "--optimizer", "sgd"], "--optimizer"),
    "schedule": ([*TRAIN, "--schedule", "x"], "--schedule"),
    "condition": (
        [*TRAIN, "--condition", "weather"],
        "one of 'None', 'body_type', 'caption', 'class', 'low_resolution'.",
    ),
    **{
        f"network {word}": ([*TRAIN, "--network", word], f"--network takes JSON such as {EXAMPLE}, not {word!r}")
        for word in ("{name: resnet}", "resnet", "[1]", "3", "null", '"resnet"', "")
    },
    "no name": ([*TRAIN, "--network", "{}"], 'network needs a name, such as {"name": "resnet"}, not {}'),
    **{
        f"empty {name}": ([*TRAIN, f"--{name}", ""], f"{name} is empty: give a name or a path, or leave --{name} out")
        for name in ("data", "start", "autoencoder")
    },
    "no size": ([*TRAIN, "--size", 0], "size must lie in [8, 1024] pixels, not 0"),
    "no steps": (["train", "--out", "run", "--steps", 0], "steps must be greater than 0, not 0"),
    "sigma_data": ([*TRAIN, "--sigma-data", -1], "sigma_data must be greater than 0, not -1"),
    "floor": ([*TRAIN, "--snr-floor", 1], "give min_snr_gamma, too"),
    "seed": ([*TRAIN, "--seed", 2**32], "seed must lie in [0, 4294967295], not 4294967296"),
    "small": ([*TRAIN, "--size", 4], "size must lie in [8, 1024] pixels, not 4"),
    "large": ([*TRAIN, "--size", 100000], "size must lie in [8, 1024] pixels, not 100000"),
    "endless": (["train", "--out", "run", "--minutes", "inf"], "minutes must be a finite number, not inf"),
    "no aspect": ([*TRAIN, "--aspect="], "aspect is width:height, such as 1:1 or 3:2, between 1:4 and 4:1, not ''"),
    "sampler": (["sample", "--weights", "toy-cars-resnet", "--out", "a.png", "--sampler", "euler"], "--sampler"),
    "eta": (["sample", "--weights", "a", "--out", "a.png", "--eta", 2, "--sampler", "ddim"], "in [0, 1], not 2"),
    "scale": (
        ["sample", "--weights", "a", "--out", "a.png", "--guidance-scale", "nan"],
        "--guidance-scale must be a fin",
    ),
    "no weights": (["sample", "--out", "a.png"], "--weights"),
    "two guides": (["evaluate", "--weights", "a", "--data", "b", "--guide", "c", "--skip-layers", "d"], "choose one"),
    "extractor": (["evaluate", "--weights", "a", "--data", "b", "--extractor", "eye"], "--extractor"),
}


@pytest.mark.parametrize("arguments, text", UNREADABLE.values(), ids=UNREADABLE)
def test_a_command_line_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, monkeypatch, error, arguments, text):
    monkeypatch.chdir(tmp_path)
    code, said = error(*arguments)
    assert code == 2 and text in said and not any(mark in said for mark in "│╭╰─\x1b"), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--out", ""], ["--out="]])
def test_an_empty_out_is_not_this_folder(tmp_path, monkeypatch, error, words):
    monkeypatch.chdir(tmp_path)
    code, said = error("train", "--steps", 1, *words)
    assert code == 1 and said == "error: --out is empty: give the folder of the run, or . for this one"
    assert not list(tmp_path.iterdir())


FLAGS = {
    "train": "--out --data --resume --network --prediction-type --no-flip --clip-grad-norm --snapshot-images --steps",
    "sample": "--weights --out --sampler --steps --prompt --condition --clip-sample --timestep-spacing --enlarge",
    "evaluate": "--weights --data --guidance-scale --skip-layers --guide-conditional --interval --extractor --prompt",
    "figures": "--out",
    "export": "--weights --out",
    "download": "",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_the_flags_and_leaves_with_0(capsys, name):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    said, errors = capsys.readouterr()
    assert left.value.code == 0 and errors == "" and f"python -m diffusion_utils {name}" in said
    assert all(flag in said for flag in FLAGS[name].split()) and "--config." not in said and "--drawing." not in said


EACH_WITH_HELP = """
import runpy, sys
for arguments in [[], ["paint"], ["sample"], ["sample", "--weights", "größe", "--out", "a.png"]] + [
    [name, "--help"] for name in "train sample evaluate figures export download".split()
]:
    sys.argv[1:] = arguments
    try:
        runpy.run_module("diffusion_utils", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        print("code", stop.code)
"""


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_terminal_without_unicode_reads_every_help_and_error(tmp_path, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", EACH_WITH_HELP], env=environment, capture_output=True, cwd=tmp_path)
    said, errors = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 0 and re.findall("code (.)", said) == ["0", "2", "2", "1", *"000000"], errors
    first, second, third = errors.splitlines()
    assert first.startswith("error: unknown command 'paint'") and third.startswith("error: no weights named 'gr")
    assert second.startswith("error: Missing") and "--weights" in second
    assert all(f"python -m diffusion_utils {name}" in said for name in COMMANDS)


def test_help_and_an_unknown_command_list_all_commands(capsys, error):
    for arguments in (["--help"], []):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        written = capsys.readouterr().out
        assert left.value.code == 0 and set(FLAGS) == set(COMMANDS) and all(name in written for name in FLAGS)
    code, said = error("paint")
    assert code == 2 and "unknown command 'paint': choose one of train, " in said


def test_errors_of_a_run_folder_say_what_is_wrong(tmp_path, folder, error):
    out = tmp_path / "run"
    arguments = ["--data", folder, "--out", out, "--steps", 2, "--size", 8, *COMMON]
    train(*arguments)
    before = (out / "checkpoint.pt").read_bytes()
    code, said = error("train", *arguments)
    assert code == 1 and said.startswith(f"error: {out} already holds a run: resume it (--resume) or choose")
    assert (out / "checkpoint.pt").read_bytes() == before
    (out / "checkpoint.pt").write_bytes(before[:1000])
    code, said = error("train", "--out", out, "--resume", "--steps", 4)
    assert code == 1 and said.startswith(f"error: {out}/checkpoint.pt is damaged")


RUN = {"data": "toy_cars", "size": 8, "config": {"network": TINY}}
FOREIGN_RUNS = {  # what run.json may hold, and what is said of it
    "nothing": (b"", "Expecting value"),
    "half": (b'{"data": "x', "Unterminated string"),
    "a list": (b"[]", "its entries are missing"),
    "empty": (b"{}", "it lacks data, size, config"),
    "binary": (b"\x80\x00\xff" * 9, "can't decode"),
    "of another version": (RUN | {"config": {"width": 3}}, "argument 'width'"),
    "settings": (RUN | {"config": [1]}, "must be a mapping"),
    "size": (RUN | {"size": "32"}, "size must be a whole number, not '32'"),
    "data": (RUN | {"data": 5}, "data must be a text, not 5"),
    "steps": (RUN | {"config": {"network": TINY, "steps": "9"}}, "steps must be a whole number, not '9'"),
    "before": (RUN | {"before": [1]}, "its entries are missing"),
}


@pytest.mark.parametrize("contents, text", FOREIGN_RUNS.values(), ids=FOREIGN_RUNS)
def test_a_foreign_run_json_is_named(tmp_path, error, contents, text):
    path = tmp_path / "run.json"
    path.write_bytes(contents if isinstance(contents, bytes) else json.dumps(contents).encode())
    code, said = error("train", "--out", tmp_path, "--resume", "--steps", 4)
    assert code == 1 and f"{path} does not describe a run of this package (" in said and text in said
    assert said.endswith(": put it back, or choose another folder") and files(tmp_path) == ["run.json"]


def test_an_error_of_the_system_names_the_file(tmp_path, folder, error):
    (tmp_path / "run" / "log.jsonl").mkdir(parents=True)
    code, said = error("train", "--data", folder, "--size", 8, "--steps", 1, "--out", tmp_path / "run", *COMMON)
    assert code == 1 and said == f"error: {tmp_path}/run/log.jsonl: Is a directory"


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_weights_whose_run_is_gone_are_not_overwritten(tmp_path, folder, error, resume):
    (tmp_path / "weights.safetensors").write_text("dear")
    arguments = ["--data", folder, "--out", tmp_path, "--steps", 2, "--size", 8, *COMMON]
    code, said = error("train", *arguments, *resume)
    assert code == 1 and said == (
        f"error: {tmp_path} holds weights.safetensors, but no run to go on with: choose another folder"
    )
    assert (tmp_path / "weights.safetensors").read_text() == "dear"


def test_a_foreign_log_stops_a_run_before_it_writes(tmp_path, folder):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text("epoch 1\nepoch 2\n")
    arguments = ["--data", folder, "--out", tmp_path / "run", "--steps", 2, "--size", 8, *COMMON]
    with pytest.raises(ValueError, match="line 1 of .*log.jsonl is no record of a run: move that file away"):
        train(*arguments)
    assert files(tmp_path / "run") == ["log.jsonl"]


@pytest.mark.parametrize("where", ["locked", "locked/deep/run", "file", "file/run"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, as_nobody, monkeypatch, where):
    monkeypatch.setattr(sets, "load", lambda *_: pytest.fail("loaded the pictures"))
    (tmp_path / "locked").mkdir(mode=0o555)
    (tmp_path / "file").write_text("mine")
    said = as_nobody(lambda: train("--out", tmp_path / where, "--steps", 2))
    wrong = "nothing can be written in" if "locked" in where else "is a file"
    assert said.partition(": --out: ")[2] and wrong in said and str(tmp_path / where.split("/")[0]) in said
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "locked"]


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_is_whole(tmp_path, folder, error, monkeypatch):
    resource = pytest.importorskip("resource")
    out = tmp_path / "run"
    arguments = ["train", "--data", folder, "--out", out, "--steps", 2, "--size", 8, *COMMON]
    resume = ["train", "--out", out, "--resume", "--steps"]

    def full(room, *arguments):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            return error(*arguments, bar=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    code, said = full(10_000, *arguments)
    assert code == 1 and said.startswith(f"error: no room for the files of {out} (file too large): no checkpoint was")
    assert files(out) == ["log.jsonl", "run.json"]
    assert main([str(a) for a in (*resume, 4)]) == 0
    before = {name: (out / name).read_bytes() for name in files(out) if name not in ("log.jsonl", "run.json")}
    code, said = full(10_000, *resume, 6)
    assert code == 1 and said.endswith(f": the last checkpoint is whole; make room and go on with --resume --out {out}")
    assert {name: (out / name).read_bytes() for name in before} == before
    assert files(out) == sorted([*before, "log.jsonl", "run.json"])
    with monkeypatch.context() as patch:  # room for the checkpoint, and none for the weights
        patch.setattr("diffusion_utils.pretrained.serialized", lambda weights: bytes(10_000_000))
        code, said = full(5_000_000, *resume, 6)
    assert code == 1 and "the last checkpoint is whole" in said
    assert main([str(a) for a in resume[:-1]]) == 0  # writes them, once there is room
    assert pretrained.card(out / "weights.safetensors")["steps"] == 6


def test_weights_that_grow_beyond_half_precision_are_not_written(tmp_path, folder, error):
    own = ["--data", folder, "--out", tmp_path / "run", "--size", 8, *COMMON]
    wild = ["--steps", 1, "--warmup-steps", 0, "--decay-fraction", 0, "--learning-rate", 1e6]
    code, said = error("train", *own, *wild, bar=True)
    assert code == 1 and "the largest weight is 1e+06 after 1 steps: lower learning_rate" in said
    assert files(tmp_path / "run") == ["log.jsonl", "run.json"]
    train(*own, *wild[:-2])  # the same again, as advised with another learning rate
    assert pretrained.card(tmp_path / "run" / "weights.safetensors")["steps"] == 1


def test_a_failing_download_is_one_line(monkeypatch, error):
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # makes the import fail
    code, said = error("download")
    assert code == 1 and said.startswith("error: the download did not work")


# ---------------------------------------------------------------- sampling


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_weights):
    """Weights of a network that draws noise; the commands do not mind."""
    return tiny_weights(tmp_path_factory.mktemp("weights") / "mine.safetensors", network=TINY, size=16)


def draw(weights, out, *arguments):
    parse([str(a) for a in ("sample", "--weights", weights, "--out", out, "--device", "cpu", *arguments)])()
    with Image.open(out) as image:
        return np.asarray(image)


def test_sample_draws_a_grid_that_depends_on_its_arguments_alone(tmp_path, weights, capsys):
    settings = ["--sampler", "ddim", "--steps", 5, "--columns", 2]
    four = draw(weights, tmp_path / "a" / "four.png", "--count", 4, "--seed", 0, *settings)
    assert "4 pictures in" in capsys.readouterr().out
    again = draw(weights, tmp_path / "again.png", "--count", 4, "--seed", 0, *settings)
    assert np.array_equal(four, again)
    assert four.ndim == 3 and four.shape[1] > four.shape[0]
    # Picture i has the seed --seed + i: the lower row is the upper row two seeds later.
    two = draw(weights, tmp_path / "two.png", "--count", 2, "--seed", 2, *settings)
    height = two.shape[0] // 2
    middle = slice(height - 3, height + 3)
    offset = four.shape[0] - two.shape[0]
    assert np.array_equal(four[offset:][middle], two[middle])
    assert not np.array_equal(four[: len(two)][middle], two[middle])


@pytest.mark.parametrize(
    "change",
    [
        ["--sampler", "ddpm"],
        ["--eta", 1],
        ["--steps", 3],
        ["--timestep-spacing", "leading"],
        ["--seed", 1],
        ["--time-shift", 30],
    ],
)
def test_every_option_of_sample_changes_the_picture(tmp_path, weights, change):
    settings = ["--count", 1, "--sampler", "ddim", "--steps", 8, "--clip-sample", "False"]
    plain = draw(weights, tmp_path / "plain.png", *settings)
    assert not np.array_equal(plain, draw(weights, tmp_path / "other.png", *settings, *change))


SAMPLE_ERRORS = {
    "unknown": (["--weights", "nobodys"], "no weights named 'nobodys'"),
    "count": (["--count", 0], "--count and --columns must be at least 1"),
    "eta": (["--eta", 0.5], "eta belongs to the sampler ddim, not to dpm_solver_pp"),
    "steps": (["--steps", 101], "in [1, 100], not 101"),
    "no ending": (["--out", "grid"], "grid must end in the format of a picture: choose one of .png, .jpg"),
    "ending": (["--out", "grid.docx"], "grid.docx must end in the format of a picture"),
    "icon": (["--out", "grid.ico"], "grid.ico must end in the format of a picture"),
    "folder": (["--out", "folder.png"], "--out folder.png is a folder: give the name of a file"),
    "below a file": (["--out", "file/a.png"], "file is a file and not a folder"),
    "device": (["--device", "gpu"], "there is no device 'gpu' here: choose one of cpu"),
    "no device": (["--device", ""], "there is no device '' here"),
    "enlarge": (["--enlarge", ""], "no weights named ''"),
    "noise level": (["--noise-level", 50], "--noise-level is about enlarging: give --enlarge, too"),
    "interval": (["--interval", 10, 20], "interval belongs to guidance: give --guidance-scale, too, such as 2"),
    "guide": (["--guide", "x"], "guide belongs to guidance: give --guidance-scale, too, such as 2"),
    "scale": (["--guidance-scale", 2], "--guidance-scale 2.0 needs a worse guess to walk away from"),
    "empty condition": (["--condition", ""], "takes no condition: leave it out"),
    "empty prompt": (["--prompt", ""], "takes no prompt: leave it out"),
    "empty weights": (["--weights", ""], "no weights named ''"),
    "seed": (["--seed", -1], "seed must lie in [0, 4294967295], not -1"),
    "last seed": (["--seed", 2**32 - 2, "--count", 3], "seed must lie in [0, 4294967295], not 4294967296"),
}


@pytest.mark.parametrize("arguments, text", SAMPLE_ERRORS.values(), ids=SAMPLE_ERRORS)
def test_errors_of_sampling_say_what_is_wrong(tmp_path, monkeypatch, weights, error, arguments, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Pipeline, "_draw", None)  # all is said before the work
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    code, said = error("sample", "--weights", weights, "--out", "grid.png", "--device", "cpu", *arguments)
    assert code == 1 and text in said
    assert files(tmp_path) == ["file", "folder.png"]


@pytest.mark.parametrize(
    "ending, form", [("webp", "WEBP"), ("gif", "GIF"), ("JPG", "JPEG"), ("tif", "TIFF"), ("png", "PNG")]
)
def test_a_grid_is_written_as_its_name_ends(tmp_path, weights, ending, form):
    out = tmp_path / f"a.{ending}"
    draw(weights, out, "--count", 2, "--steps", 2)
    with Image.open(out) as image:
        assert image.format == form and image.size[0] > image.size[1]


def test_a_card_without_a_size_is_refused(tmp_path, weights, error):
    about = pretrained.card(weights)
    del about["size"]
    path = tmp_path / "sizeless.safetensors"
    pretrained.save(path, pretrained.load(weights), about)
    code, said = error("sample", "--weights", path, "--out", tmp_path / "a.png")
    assert code == 1 and "sizeless.safetensors lacks size" in said


def test_accelerate_launches_two_processes_that_train_the_same_model(folder, tmp_path):
    """The README's way to several GPUs, on two CPU processes that talk through gloo."""
    run = ["-m", "diffusion_utils", "train", "--data", folder, "--size", 16, "--steps", 4, "--sample-every", 0, *COMMON]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        Path(sys.executable).with_name("accelerate"),
        "launch",
        "--multi_gpu",
        "--num_processes",
        2,
        "--main_process_port",
        port,
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for out, start in (("one", [sys.executable]), ("two", launch)):
        done = subprocess.run(
            [str(a) for a in (*start, *run, "--out", tmp_path / out)],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_checkpoint(tmp_path / name / "checkpoint.pt")["net"] for name in ("one", "two"))
    for name, weights in one.items():
        assert torch.allclose(weights, two[name], atol=1e-5), name


def test_a_student_is_tuned_from_weights_and_drawn_in_two_steps(tmp_path, few_cars):
    teacher, out = tmp_path / "teacher", tmp_path / "student"
    conditional = ["--data", "stanford_cars", "--condition", "body_type", "--size", 8, "--steps", 2]
    train(*conditional, "--num-train-timesteps", 50, "--out", teacher, *COMMON)
    weights = teacher / "weights.safetensors"
    own = ["--batch-size", 8, "--log-every", 2, "--mixed-precision", "no", "--compile", "no", "--steps", 4]
    train("--data", "stanford_cars", "--objective", "consistency", "--start", weights, "--out", out, *own)
    card = pretrained.card(out / "weights.safetensors")
    assert card["drawing"] == {"sampler": "consistency", "steps": 2}
    assert card["config"]["objective"] == "consistency" and card["num_train_timesteps"] == 50
    about = pretrained.card(weights)
    assert (card["network"], card["conditions"]) == (about["network"], about["conditions"])
    draw(out / "weights.safetensors", tmp_path / "a.png", "--count", 2)
    counted = ("images_seen", "steps", "seconds")
    assert card["start"] == {"name": "weights"} | {name: about[name] for name in counted}
    assert card["images_seen"] == about["images_seen"] + 4 * 8
    values = {"condition": "body_type", "size": 8, "schedule": "linear", "sigma-data": 0.4, "prediction-type": "sample"}
    for option, value in values.items():  # the last one is the default, and said all the same
        with pytest.raises(ValueError, match=f"brings its own .*: leave --{option} out"):
            train("--data", "stanford_cars", "--start", weights, f"--{option}", value, "--out", tmp_path / "no", *own)
    weights.unlink()
    train("--out", out, "--resume", "--steps", 6)  # the checkpoint has all it needs
    resumed = pretrained.card(out / "weights.safetensors")
    assert resumed["steps"] == about["steps"] + 6 and resumed["images_seen"] == about["images_seen"] + 6 * 8
    assert resumed["config"]["log_every"] == 2  # more steps, and all else as it was
