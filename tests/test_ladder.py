"""The ladder of notebook 05: its rows can be built, its results are those of its rows, and the
command that makes them can be stopped, resumed and run twice."""

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from diffusion_utils import networks
from diffusion_utils.data import sets, toy_cars
from diffusion_utils.data.stanford_cars import CarPictures
from diffusion_utils.evaluation import features, reference
from diffusion_utils.training import TrainConfig

FILE = Path(__file__).parents[1] / "benchmarks" / "ladder.py"
sys.path.append(str(FILE.parent))  # as Python does for a command that lies there
spec = importlib.util.spec_from_file_location("ladder", FILE)
ladder = importlib.util.module_from_spec(spec)
sys.modules["ladder"] = ladder
spec.loader.exec_module(ladder)
RESULTS = sorted((ladder.RESULTS / "ladder").glob("*.json"))


@pytest.mark.parametrize("name", ladder.ROWS)
def test_every_row_can_be_built_and_is_of_the_announced_size(name):
    config = ladder.configuration(name, seed=0, sigma_data=0.5)
    millions = networks.count_parameters(networks.build(**config.network)) / 1e6
    if name.startswith("size-"):
        assert millions == pytest.approx(float(name.removeprefix("size-")), rel=0.08)
    else:  # 0.6 million; SegNet and pixel shuffle are the outliers
        assert 0.49 < millions < 0.79


def test_rows_of_single_changes_differ_from_the_main_row_in_one_thing():
    def flat(name):
        settings = asdict(ladder.configuration(name, 0, 0.5))
        return {**settings.pop("network"), **settings}

    main = flat("none-sample")
    for name, row in ladder.ROWS.items():
        if row["settings"]["network"].get("name") == "resnet" and name.split("-")[0] in (
            "no",
            "up",
            "stem",
            "attention",
            "lognormal",
            "min",
            "linear",
            "muon",
            "size",
        ):
            changed = {key for key, value in flat(name).items() if main.get(key) != value}
            assert len(changed) == 1 or changed == {"stem", "channels"}, (name, changed)


def test_every_row_is_measured_and_what_is_compared_with_twice():
    done = {path.stem for path in RESULTS}
    assert {f"{name}-seed0" for name in ladder.ROWS} <= done
    assert {f"{name}-seed1" for name in ladder.TWICE} <= done


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_is_that_of_its_row(path):
    result = json.loads(path.read_text())
    assert path.stem == f"{result['row']}-seed{result['seed']}"
    config = ladder.configuration(result["row"], result["seed"], result["sigma_data"])
    # Settings that came later than the result stand at their defaults, which change nothing.
    assert asdict(TrainConfig(**result["config"])) == json.loads(json.dumps(asdict(config)))
    assert result["images_seen"] == config.images == result["steps"] * config.batch_size
    assert result["parameters"] == networks.count_parameters(networks.build(**config.network))
    assert result["counts"]["generated"] == ladder.COUNT and result["extractor"] == features.DEFAULT
    assert result["machine"] and result["date"]
    assert abs(result["floor"]["kid"]) < 0.001 < result["generated"]["kid"]


class Coarse(torch.nn.Module):
    """Features in no time."""

    num_features = 48

    def forward(self, images):
        return images[:, :, ::8, ::8].flatten(1).float() / 255


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The ladder on 60 toy cars, for 3 steps a row."""
    cars = toy_cars.load(60, 32).images
    pictures = CarPictures(cars, [f"{i:05}.jpg" for i in range(60)], torch.zeros(60), [], [])
    monkeypatch.setattr(ladder, "pictures", lambda frame: pictures)
    for name, value in (("IMAGES", 24), ("BATCH", 8), ("COUNT", 6), ("STEPS", 2), ("TIMESTEPS", (99, 899))):
        monkeypatch.setattr(ladder, name, value)
    monkeypatch.setitem(features.EXTRACTORS, features.DEFAULT, Coarse)
    monkeypatch.setitem(reference.OTHERS, features.DEFAULT, {})
    features.extractor.cache_clear()

    def run(*arguments):
        ladder.main(["rows", *arguments, "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")])
        return sorted(path.name for path in (tmp_path / "results").glob("*"))

    yield run, tmp_path
    features.extractor.cache_clear()


def test_a_row_is_trained_measured_and_then_left_alone(small, capsys):
    run, folder = small
    assert run("none-sample", "--seed", "0") == ["none-sample-seed0.json"]
    path = folder / "results" / "none-sample-seed0.json"
    result = json.loads(path.read_text())
    assert result["images_seen"] == 24 and set(result["generated"]) == set(result["floor"])
    path.write_text("kept")
    run("none-sample", "--seed", "0")
    assert path.read_text() == "kept"
    capsys.readouterr()
    run("--list")
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("none-sample ")]
    assert "done" in listed[0] and "done" not in listed[1]


def test_averaged_and_last_weights_of_one_training(small):
    run, folder = small
    assert run("no-decay", "no-decay-raw") == ["no-decay-raw-seed0.json", "no-decay-seed0.json"]
    assert [path.name for path in (folder / "runs").iterdir()] == ["no-decay-seed0"]
    averaged, last = (
        json.loads((folder / "results" / f"{n}-seed0.json").read_text()) for n in ("no-decay", "no-decay-raw")
    )
    key = "held_out_error_of_x0_as_share_of_variance"
    assert averaged[key] != last[key] and averaged["config"] == last["config"]


def test_a_row_that_another_process_holds_is_skipped(small):
    run, folder = small
    rows = folder / "runs" / "none-sample-seed0"
    rows.mkdir(parents=True)
    with FileLock(rows / ".lock"):
        assert run("none-sample", "--seed", "0") == []
    assert run("none-sample", "--seed", "0") == ["none-sample-seed0.json"]


def test_unknown_rows_are_named(small):
    with pytest.raises(ValueError, match="no row named 'nonsense'"):
        small[0]("nonsense")


# ---------------------------------------------------------------- the last stretch


@pytest.mark.parametrize("change", ladder.CHANGES)
def test_a_branch_differs_from_the_plain_one_in_what_its_name_says(change):
    trunk = ladder.stretch_configuration(None, 1, 0.5)
    plain, config = (asdict(ladder.stretch_configuration(name, 1, 0.5)) for name in ("nothing", change))
    assert {key: config[key] for key in plain if config[key] != plain[key]} == {**ladder.CHANGES[change]}
    assert config["seed"] != trunk.seed and config["images"] == ladder.STRETCH and not config["warmup_steps"]
    assert all(config[name] == getattr(trunk, name) for name in ("network", "optimizer", "ema_decay"))


def test_branches_are_trained_measured_and_then_left_alone(small, monkeypatch, capsys):
    _, folder = small
    values = dict(TRUNK=160, STRETCH=80, SNAPSHOT_STEPS=2, BATCH=8, SHORT=0.5, GAMMAS=(3,))
    for name, value in values.items():
        monkeypatch.setattr(ladder, name, value)
    pictures = sets.PictureSet("toy_cars", *(toy_cars.load(n, 32, seed=n).images for n in (24, 16)), "toys")
    monkeypatch.setattr(ladder.sets, "load", lambda *of_what: pictures)
    command = ["stretch", "nothing", "pictures moved by up to 1 pixel", "--seeds", "0"]
    command += ["--runs", str(folder / "runs"), "--out", str(folder / "stretch.json")]
    ladder.main(command)
    plain, longer, moved = json.loads((folder / "stretch.json").read_text())
    assert [row["gamma"] for row in (plain, longer, moved)] == [None, 3, None]
    assert plain["images_seen"] == 80 and plain[ladder.ERRORS] != longer[ladder.ERRORS] != moved[ladder.ERRORS]
    trunk = load_file(folder / "runs" / "trunk-seed0" / "snapshots" / "000020.safetensors")
    first = load_file(folder / "runs" / "nothing-seed0" / "snapshots" / "000002.safetensors")
    new = networks.build(**ladder.ROWS["muon"]["settings"]["network"]).state_dict()
    distance = [sum((first[name] - there[name]).square().sum() for name in first) for there in (trunk, new)]
    assert distance[0] < 0.1 * distance[1]  # it goes on from the trunk
    capsys.readouterr()
    ladder.main(command)
    assert capsys.readouterr().out == ""
