"""The benchmarks: their commands run, keep what they measured, and say what they lack."""

import contextlib
import importlib.util
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_utils import networks, pipeline, pretrained, sampling, schedule
from diffusion_utils.commands.train import Job
from diffusion_utils.data import sets, stanford_cars, to_float, toy_cars
from diffusion_utils.evaluation import features, reference
from diffusion_utils.guidance import Guided
from diffusion_utils.ideal import Ideal
from diffusion_utils.networks import presets
from diffusion_utils.pipeline import DEFAULT, Drawing, Pipeline
from diffusion_utils.training import read_log

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(FOLDER))  # as Python does for a command that lies there


def module(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


NAMES = ("peers", "ladder", "ways", "speed", "gpu", "flow", "ideal", "copying", "any_network", "own")
peers, ladder, ways, speed, gpu, flow, ideal, copying, any_network, own = map(module, NAMES)
LOAD = sets.load  # itself
TINY = {"name": "resnet", "channels": [8], "stem": 4, "embedding_dim": 8, "cond_dim": 9}
KINDS = dict.fromkeys(stanford_cars.BODY_TYPES, 1 / 9)


class Coarse(nn.Module):
    """Features in no time."""

    num_features = 48

    def forward(self, images):
        return images[:, :, ::8, ::8].flatten(1).float() / 255


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Sixty toy cars for Stanford's, and features in no time."""

    def load(data, size):
        cars = toy_cars.load(60, size).images
        return sets.PictureSet(data, cars[:50], cars[50:], "toy cars")

    monkeypatch.setattr(sets, "load", load)
    monkeypatch.setitem(features.EXTRACTORS, features.DEFAULT, Coarse)
    monkeypatch.setitem(reference.OTHERS, features.DEFAULT, {})
    features.extractor.cache_clear()
    yield
    features.extractor.cache_clear()


@pytest.fixture
def save(tiny_weights):
    """Function: (path, images_seen, seed, size) writes weights as a training on Stanford Cars would."""

    def write(path, images_seen=0, seed=0, size=32):
        errors = {"held_out_error_of_x0_as_share_of_variance": {"t=9": 0.5}}
        data = {"data": "Stanford Cars train, 50", "machine": "a test", "conditions": KINDS}
        counts = {"parameters": 1, "macs": 1, "images_seen": images_seen, "seconds": 1}
        return tiny_weights(path, seed, network=TINY, size=size, **errors, **data, **counts)

    return write


# ---------------------------------------------------------------- peers


def test_the_plain_unet_is_the_tutorials():
    with torch.device("meta"):
        net = peers.PlainUNet()
    assert networks.count_parameters(net) == 62_438_883  # "62.4 M" in the tutorial's own count
    small = peers.PlainUNet(widths=(4, 8, 16))
    assert small(torch.zeros(2, 3, 8, 8), torch.tensor([0, 9])).shape == (2, 3, 8, 8)
    assert 0.04 < float(peers.plain_schedule().alphas_cumprod[-1]) < 0.06  # √0.05 = 0.22 of the signal is left


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_is_called_like_every_network_and_has_a_schedule(name):
    if name in ("denoising-diffusion-pytorch", "smalldiffusion"):
        pytest.importorskip(name.replace("-", "_"), reason=f"pip install {name} to test it")
    peer = peers.PEERS[name]
    schedule = peer.schedule()
    assert (schedule.alphas_cumprod.diff() < 0).all() and schedule.alphas_cumprod[-1] > 0
    with torch.device("meta"):
        net = peer.build(32).eval()
    assert (
        networks.count_parameters(net)
        == {
            "ours": 996_972,
            "plain U-Net": 62_438_883,
            "plain U-Net, 1 M": 989_467,
            "diffusers": 113_673_219,
            "denoising-diffusion-pytorch": 35_711_491,
            "smalldiffusion": 36_071_939,
        }[name]
    )
    for count in () if name == "smalldiffusion" else (1, 2):  # it reads values, which "meta" has none of
        x_t = torch.zeros(count, 3, 32, 32, device="meta")
        assert net(x_t, torch.zeros(count, dtype=torch.int64, device="meta")).shape == x_t.shape
    assert peer.optimizer(peers.PlainUNet((4, 8))).param_groups[0]["lr"] >= 8e-5


def test_what_smalldiffusion_is_shown_is_what_it_shows_itself():
    smalldiffusion = pytest.importorskip("smalldiffusion", reason="pip install smalldiffusion to test it")
    schedule, t = peers.smalldiffusion_schedule(), torch.tensor([3, 700])
    alpha, sigma = schedule.alpha_sigma(t, like=torch.zeros(2, 3, 4, 4))
    x0, noise, s = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), smalldiffusion.ScheduleSigmoid(N=1000)[t]
    wrapped = peers.smalldiffusion_unet(32)
    x, level = wrapped.call(lambda *given: given, alpha * x0 + sigma * noise, t)
    torch.testing.assert_close(x, x0 + s.view(-1, 1, 1, 1) * noise, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(level.flatten(), s, rtol=1e-4, atol=1e-4)


def test_the_loss_of_denoising_diffusion_pytorch_is_its_own():
    library = pytest.importorskip("denoising_diffusion_pytorch", reason="pip install denoising-diffusion-pytorch")
    net = library.Unet(dim=8, dim_mults=(1, 2))
    diffusion = library.GaussianDiffusion(net, image_size=8, timesteps=1000)
    x0, noise, t = torch.rand(3, 3, 8, 8) * 2 - 1, torch.randn(3, 3, 8, 8), torch.tensor([0, 400, 999])
    with torch.no_grad():
        theirs = diffusion.p_losses(x0, t, noise=noise)
        alpha, sigma = peers.ddpm_pytorch_schedule().alpha_sigma(t, like=x0)
        wanted = peers.target("v_prediction", x0, noise, alpha, sigma)
        ours = peers.l2_by_signal(net(alpha * x0 + sigma * noise, t), wanted, alpha)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.fixture
def small_peer(monkeypatch):
    small = peers.Peer(
        "a small one",
        lambda size: peers.PlainUNet((4, 8)),
        peers.plain_schedule,
        lambda net: torch.optim.Adam(net.parameters(), 5e-3),
        loss=peers.l1,
        batch_size=4,
    )
    monkeypatch.setattr(peers, "PEERS", {"small": small})


def run_peers(tmp_path, *more):
    own = ["--one", "--size", "16", "--minutes", "0.005", "--count", "6", "--device", "cpu"]
    peers.main([*more, *own, "--out", str(tmp_path / "peers.json")])


def test_a_peer_is_trained_drawn_from_and_measured(tmp_path, small_peer, monkeypatch):
    monkeypatch.setattr(peers, "STEPS", 2)
    run_peers(tmp_path, "small")
    (result,) = json.loads((tmp_path / "peers.json").read_text())
    assert result["peer"] == "small" and result["images_seen"] == 4 * result["steps"] > 0
    assert result["peak_memory_mib"] > 0 and result["seconds_to_draw_16"] > 0
    assert set(result["generated"]) == set(result["floor"])
    assert (tmp_path / "peers-small.png").is_file()


def test_shipped_weights_are_shrunk_and_set_beside_the_peers(tmp_path, small_peer, monkeypatch, capsys, save):
    monkeypatch.setattr(peers, "STEPS", 2)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    save(tmp_path / "mine.safetensors", 500)
    run_peers(tmp_path, "small")
    own = [
        "--size",
        "16",
        "--minutes",
        "0.005",
        "--count",
        "6",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "peers.json"),
    ]
    for _ in range(2):  # measured anew, not added twice
        peers.main(["small", *own, "--shipped", "mine"])
    small, mine = json.loads((tmp_path / "peers.json").read_text())
    assert small["peer"] == "small" and mine["peer"] == "mine"
    assert (mine["images_seen"], mine["drawn_at"], mine["size"], mine["minutes"]) == (500, 32, 16, None)
    stored = {**mine, "count": 748}
    (tmp_path / "peers.json").write_text(json.dumps([small, stored]))
    peers.main(["small", *own, "--shipped", "mine"])  # another count is another measurement
    assert json.loads((tmp_path / "peers.json").read_text()) == [small, stored, mine]
    with pytest.raises(ValueError, match="cannot be set beside peers of 64×64 cars"):
        peers.main(["small", "--size", "64", "--shipped", "mine", "--out", str(tmp_path / "no.json")])
    assert mine["floor"] == small["floor"] and set(mine["generated"]) == set(small["generated"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("mine: 500 images, KID × 1000 ")


def test_training_a_peer_learns(small_peer):
    images = toy_cars.load(16, 16).images
    torch.manual_seed(0)
    denoiser, took = peers.fit(peers.PEERS["small"], 16, images, torch.device("cpu"), steps=300)
    noise, t = torch.randn(16, 3, 16, 16), torch.full((16,), 250)
    _, sigma = denoiser.schedule.alpha_sigma(t, like=noise)
    with torch.no_grad():
        answer = denoiser.net(sigma * noise, t)  # mostly noise, and asked for the noise
    assert took["steps"] == 300 and (answer - noise).square().mean() < 0.8


def test_an_interrupted_training_of_a_peer_goes_on_where_it_was(small_peer, tmp_path, monkeypatch):
    images, peer = toy_cars.load(16, 16).images, peers.PEERS["small"]
    steps, interrupted_at = 0, None

    def batches(images, step, config, make=peers.make_batch):
        nonlocal steps
        steps += 1
        if steps == interrupted_at:
            raise KeyboardInterrupt
        return make(images, step, config)

    monkeypatch.setattr(peers, "make_batch", batches)
    monkeypatch.setattr(peers, "CHECKPOINT_EVERY", 0)  # after every step
    whole = peers.fit(peer, 16, images, torch.device("cpu"), images=24)
    for interrupted_at in (4, None):
        steps, stopped = 0, pytest.raises(KeyboardInterrupt) if interrupted_at else contextlib.nullcontext()
        with stopped:
            again = peers.fit(peer, 16, images, torch.device("cpu"), tmp_path / "it.pt", images=24)
    assert steps == 3 + 20  # the other three of six, and what BatchNorm's statistics are taken of
    assert again[1]["steps"] == 6 and again[1]["seconds"] > 0
    for mine, theirs in zip(again[0].net.parameters(), whole[0].net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_peers_are_trained_for_minutes_or_for_pictures(tmp_path, small_peer, monkeypatch):
    monkeypatch.setattr(peers, "STEPS", 2)
    own = ["small", "--one", "--size", "16", "--count", "6", "--device", "cpu", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(peers, "CHECKPOINT_EVERY", 0)
    peers.main([*own, "--images", "10", "--out", str(tmp_path / "peers.json")])
    assert (tmp_path / "runs").is_dir() and not [*(tmp_path / "runs").iterdir()]  # what was measured needs none
    (row,) = json.loads((tmp_path / "peers.json").read_text())
    assert (row["images"], row["minutes"], row["images_seen"]) == (10, None, 12)
    with pytest.raises(ValueError, match="--minutes and --images: give one of them"):
        peers.Peers(("small",), images=10, minutes=1)


def test_batch_norms_statistics_become_those_of_the_averaged_weights():
    torch.manual_seed(0)
    net, schedule = peers.PlainUNet((4, 8)).eval(), peers.plain_schedule()
    batches = [(torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8), torch.randint(300, (8,))) for _ in range(3)]
    seen = []
    net.down[0].norm1.register_forward_pre_hook(lambda layer, given: seen.append(given[0].mean((0, 2, 3))))
    peers.settle_batch_norm(net, batches, schedule)
    assert not net.training
    torch.testing.assert_close(net.down[0].norm1.running_mean, torch.stack(seen).mean(0))


def test_an_unknown_peer_is_named(tmp_path):
    with pytest.raises(ValueError, match="no peer named 'nobody': choose out of ours, plain U-Net"):
        peers.main(["nobody", "--out", str(tmp_path / "a.json")])


# ---------------------------------------------------------------- curve


def run_curve(tmp_path, *more):
    own = ["--count", "6", "--steps", "2", "--device", "cpu", "--results", str(tmp_path)]
    ways.main(["curve", str(tmp_path / "run"), *own, *more])
    return json.loads((tmp_path / "curve-run.json").read_text())


def test_every_snapshot_is_measured_once(tmp_path, monkeypatch, save):
    for k in (1, 2):
        save(tmp_path / "run" / "snapshots" / f"weights_{100 * k:09d}.safetensors", 100 * k + 3, seed=k)
    rows = run_curve(tmp_path)
    assert [row["images_seen"] for row in rows] == [103, 203]
    assert all(row["count"] == 6 and row["steps"] == 2 and row["guide"] is None for row in rows)
    drawn = []
    draw = Pipeline.__call__
    monkeypatch.setattr(Pipeline, "__call__", lambda *given, **more: drawn.append(1) or draw(*given, **more))
    assert run_curve(tmp_path) == rows and not drawn
    guide = tmp_path / "run" / "snapshots" / "weights_000000100.safetensors"
    guided = run_curve(tmp_path, "--only", "200", "--guidance-scale", "2", "--guide", str(guide))
    assert len(guided) == 3 and len(drawn) == 1
    late = run_curve(tmp_path, "--only", "200", "--guidance-scale", "2", "--interval", "40", "99")
    assert late[3]["interval"] == [40, 99] and len(drawn) == 2
    newer = ("guide_conditional", "eta", "timestep_spacing", "clip_sample")  # rows of earlier versions lack these
    older = [{key: value for key, value in row.items() if key not in newer} for row in late]
    (tmp_path / "curve-run.json").write_text(json.dumps(older))
    run_curve(tmp_path)
    run_curve(tmp_path, "--only", "200", "--guidance-scale", "2", "--interval", "40", "99")
    assert run_curve(tmp_path) == older and len(drawn) == 2
    assert (guided[2]["guide"], guided[2]["images_seen"]) == ("/".join(guide.parts[-3:]), 203)


def test_a_measured_snapshot_is_shipped_with_its_guide(tmp_path, monkeypatch, save):
    folder = tmp_path / "run" / "snapshots"
    paths = [save(folder / f"weights_{100 * k:09d}.safetensors", 100 * k, seed=k) for k in (1, 2)]
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(pretrained, "FOLDER", package)
    own = ["--only", "200", "--guidance-scale", "2", "--guide", str(paths[0])]
    with pytest.raises(ValueError, match="was not measured like that yet"):
        run_curve(tmp_path, *own, "--ship", "mine")
    (row,) = run_curve(tmp_path, *own)
    run_curve(tmp_path, *own, "--ship", "mine")
    assert pretrained.names() == ["mine", "mine-guide"]
    card = pretrained.card("mine")
    assert card["drawing"] == {
        "sampler": "dpm_solver_pp",
        "steps": 2,
        "guidance_scale": 2,
        "guide": "mine-guide",
        "time_shift": 0,
        "guide_conditional": True,
    }
    assert pipeline.load("mine").drawing == Drawing("dpm_solver_pp", 2, 2, "mine-guide").over(DEFAULT)
    assert card["generated"] == row["generated"] and card["images_seen"] == 200
    assert pretrained.card("mine-guide")["images_seen"] == 100
    with pytest.raises(ValueError, match="--ship takes one snapshot"):
        run_curve(tmp_path, "--ship", "mine")


def test_a_run_without_snapshots_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="train with --snapshot-images"):
        run_curve(tmp_path)


# ---------------------------------------------------------------- guidance


def test_ways_of_guidance_are_measured_once_for_each_state_of_the_weights(tmp_path, monkeypatch, save):
    weights = tmp_path / "mine.safetensors"
    save(weights, 500)
    few = {
        "plain": {"steps": 2},
        "without encoder.0, w = 3": {"steps": 2, "guidance_scale": 3, "skip_layers": ["encoder.0"]},
    }
    monkeypatch.setattr(ways, "GUIDANCE", few)
    monkeypatch.setattr(ways, "AUTOGUIDANCE", {"an earlier self, w = 2": {"steps": 2, "guidance_scale": 2}})

    def measured(*more):
        ways.main(["guidance", "--weights", str(weights), "--count", "6", "--results", str(tmp_path), *more])
        return json.loads((tmp_path / "guidance-mine.json").read_text())

    rows = measured()
    assert [row["way"] for row in rows] == list(few)
    assert rows[0]["generated"] != rows[1]["generated"] and rows[0]["floor"] == rows[1]["floor"]
    assert (rows[1]["skip_layers"], rows[1]["images_seen"], rows[1]["count"]) == (["encoder.0"], 500, 6)
    rows = measured("--guide", str(save(tmp_path / "weak.safetensors", 100, seed=1)))
    assert (
        len(rows) == 3 and rows[2]["guide"].endswith("/weak.safetensors") and not Path(rows[2]["guide"]).is_absolute()
    )
    save(weights, 900, seed=2)
    assert [row["images_seen"] for row in measured()] == [500, 500, 500, 900, 900]


def test_every_way_of_guidance_can_be_drawn_with_the_shipped_weights():
    pipe = replace(pipeline.load("stanford-cars-1m"), drawing=DEFAULT)
    for way in ways.GUIDANCE.values():
        guided = pipe.guided(range(2), **way)
        assert isinstance(guided, Guided) and (guided.guide is not None) == ("skip_layers" in way or "guide" in way)
        assert guided.guidance_scale == way.get("guidance_scale", 1) and guided.time_shift == way.get("time_shift", 0)


# ---------------------------------------------------------------- samplers


def test_every_sampler_is_measured_once_with_every_number_of_steps(tmp_path, monkeypatch, save):
    weights = save(tmp_path / "mine.safetensors", 500)
    monkeypatch.setattr(ways, "STEPS", (1, 3))
    command = ["samplers", "--weights", str(weights), "--count", "6", "--results", str(tmp_path)]
    ways.main(command)
    rows = json.loads((tmp_path / "samplers-mine.json").read_text())
    assert [(row["sampler"], row["steps"]) for row in rows] == [(s, n) for n in (1, 3) for s in ways.SAMPLERS]
    assert len({json.dumps(row["generated"]) for row in rows if row["steps"] == 3}) == 3
    assert all(row["floor"] == rows[0]["floor"] and row["size"] == 32 for row in rows)
    monkeypatch.setattr(Pipeline, "__call__", None)  # would fail if it were called
    ways.main(command)
    assert json.loads((tmp_path / "samplers-mine.json").read_text()) == rows


@pytest.mark.parametrize("part", ["validation"])
def test_what_comes_with_the_repository_is_not_measured_again(tmp_path, monkeypatch, part):
    stored = (ways.RESULTS / "guidance-stanford-cars-1m.json").read_bytes()
    (tmp_path / "guidance-stanford-cars-1m.json").write_bytes(stored)
    monkeypatch.setattr(Pipeline, "__call__", None)  # would fail if it were called
    seen = pretrained.card("stanford-cars-1m")["images_seen"]
    rows = [row for row in json.loads(stored) if row.get("part") == part and row["images_seen"] == seen]
    (count,) = {row["count"] for row in rows}
    own = ["--part", part, "--count", str(count), "--only", *(row["way"] for row in rows)]
    ways.main(["guidance", *own, "--results", str(tmp_path)])
    assert (tmp_path / "guidance-stanford-cars-1m.json").read_bytes() == stored


# ---------------------------------------------------------------- ideal denoisers


def test_a_network_is_compared_with_ideal_denoisers_once(tmp_path, monkeypatch, save):
    weights = save(tmp_path / "mine.safetensors")
    command = ["--weights", str(weights), "--tiny", "--count", "3", "--results", str(tmp_path)]
    monkeypatch.setattr(ideal, "TIMESTEPS", (9, 99))
    ideal.main(command)
    rows = json.loads((tmp_path / "likeness-mine.json").read_text())
    assert [row["t"] for row in rows] == [*ideal.TIMESTEPS] and {row["pictures"] for row in rows} == {16}
    for row in rows:
        assert [*row["likeness"]] == [*row["error"]] == ["network", "patch 3", "patch 9", "whole"]
        assert row["likeness"]["network"] == 1 and row["error"]["network"] > 0.3  # it has learnt nothing
    clear, noisy = (row["error"] for row in rows)
    assert clear["patch 3"] < min(clear["whole"], noisy["patch 3"]) and noisy["patch 3"] == pytest.approx(1, abs=0.1)
    save(weights, images_seen=rows[0]["images_seen"] + 1)  # others of the same name take their place
    ideal.main(command)
    assert json.loads((tmp_path / "likeness-mine.json").read_text()) == [
        row | {"images_seen": row["images_seen"] + 1} for row in rows
    ]
    monkeypatch.setattr(ideal, "compare", None)  # would fail if it were called
    ideal.main(command)


# ---------------------------------------------------------------- any network


def test_the_networks_of_the_race_are_of_one_size():
    sizes = {name: networks.count_parameters(networks.build(**net)) for name, (_, net) in any_network.NETWORKS.items()}
    assert all(0.49e6 < size < 0.68e6 for size in sizes.values()), sizes


def test_networks_get_equal_minutes_or_equal_work_and_are_measured_once(tmp_path, monkeypatch):
    small = {"dit": {"name": "dit", "dim": 24, "depth": 1}, "resnet": {"name": "resnet", "channels": [8], "stem": 4}}
    monkeypatch.setattr(any_network, "NETWORKS", {name: (name, net) for name, net in small.items()})
    monkeypatch.setattr(any_network, "RACE", tuple(small))
    monkeypatch.setattr(any_network, "pace", lambda name, images: {"dit": 400, "resnet": 800}[name])
    monkeypatch.setitem(features.EXTRACTORS, f"{features.DEFAULT}_early", Coarse)
    own = ["--minutes", "0.4", "--count", "4", "--results", str(tmp_path), "--runs", str(tmp_path / "runs")]
    own += ["--picture", str(tmp_path / "p.png")]
    any_network.main(own)
    any_network.main(["dit", "--budget", "macs", *own])
    stored = (tmp_path / "any-network.json").read_bytes()
    rows = json.loads(stored)["rows"]
    macs = {row["network"]: row["macs"] for row in rows}
    equal_work = 32 * round(0.4 * 800 * macs["resnet"] / macs["dit"] / 32)
    assert [row["images_seen"] for row in rows] == [160, 320, equal_work] and equal_work != 160
    assert [row["budget"] for row in rows] == ["minutes", "minutes", "macs"] and (tmp_path / "p.png").exists()
    for row in rows:
        assert row["kid"] > row["floor_kid"] and row["reach"]["t=99"][-1] == 1 and row["bytes_kept_per_picture"] > 12288
        assert 0.3 < row["held_out_error_of_x0_as_share_of_variance"]["t=899"] < 3
    monkeypatch.setattr(any_network, "trained", None)  # would fail if it were called
    any_network.main(own)
    assert (tmp_path / "any-network.json").read_bytes() == stored


def test_what_is_kept_for_the_backward_pass_is_counted_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x, t):
            return self.second(self.first(x).relu())

    assert any_network.kept_per_picture(Twice()) == 32 * 32 * 4 * (3 + 8)  # the picture, and what comes out of ReLU


# ---------------------------------------------------------------- copying


class ByHeart:
    """The ideal denoiser in a network's place."""

    net = nn.Identity()

    def __init__(self, images):
        self.schedule = schedule.cosine(1000)
        self.answer = Ideal(to_float(images), self.schedule)

    def __call__(self, x_t, t, cond=None):
        return self.answer(x_t, t)


def test_who_knows_a_list_by_heart_is_found_out():
    sets, held_out = toy_cars.load(24, 16).images.split(12), toy_cars.load(12, 16, start=24).images
    drawn = [to_float(images[[3, 3, 7, 5]]) for images in sets]
    row = copying.compare([*map(ByHeart, sets)], sets, drawn, held_out)
    assert (row["copies"], row["held_out_copies"], row["distance"]) == (1, 0, 0) and row["held_out_distance"] > 0.1
    assert 2 * row["error"] < row["held_out_error"]
    same = copying.compare([*map(ByHeart, sets)], sets, [drawn[0], drawn[0]], held_out)
    assert (same["copies"], same["likeness"]) == (0.5, 1) and same["other_noise_likeness"] < 0.9
    assert row["likeness"] < 0.9


def test_two_halves_of_each_size_are_trained_and_measured_once(tmp_path, monkeypatch):
    own = ["--sizes", "4", "6", "--steps", "2", "--count", "8", "--results", str(tmp_path)]
    own += ["--runs", str(tmp_path / "runs"), "--picture", str(tmp_path / "p.png")]
    seen, trained = [], copying.trained
    monkeypatch.setattr(
        copying, "trained", lambda config, images, title: seen.append(images) or trained(config, images, title)
    )
    copying.main(own)
    assert [len(images) for images in seen] == [4, 4, 6, 6]
    assert len({picture.numpy().tobytes() for images in seen[2:] for picture in images}) == 12  # none is in both halves
    rows = json.loads((tmp_path / "copying.json").read_text())
    assert [(row["cars"], row["steps"]) for row in rows] == [(4, 2), (6, 2)] and (tmp_path / "p.png").exists()
    copying.main(own)
    assert len(seen) == 4 and json.loads((tmp_path / "copying.json").read_text()) == rows


# ---------------------------------------------------------------- speed


def test_ways_of_drawing_are_timed_beside_each_other(tmp_path, monkeypatch, capsys, save):
    weights, student = save(tmp_path / "a.safetensors"), save(tmp_path / "b.safetensors", seed=1)
    monkeypatch.setattr(torch, "compile", lambda net: net)
    own = ["--rounds", "1", "--steps", "8", "--guidance-scale", "2", "--device", "cpu"]
    out = tmp_path / "speed.json"
    speed.main(["drawing", "--weights", str(weights), "--student", str(student), *own, "--out", str(out)])
    timed = json.loads(out.read_text())["ways"]
    assert list(timed) == [
        "as advised",
        "bf16",
        "compiled",
        "not guided",
        "4 steps",
        "2 steps",
        "student, 1",
        "student, 2",
        "student, 4",
    ]
    assert [way["steps"] for way in timed.values()] == [8, 8, 8, 8, 4, 2, 1, 2, 4]
    assert timed["as advised"]["ratio"] == 1 and all(way["seconds"] > 0 for way in timed.values())
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_the_preset_is_what_the_peers_are_compared_with():
    assert networks.count_parameters(peers.ours(64)) == networks.count_parameters(networks.build(**presets.CARS_1M))


# ---------------------------------------------------------------- recipe


@pytest.mark.parametrize("name", ladder.CANDIDATES)
def test_every_candidate_has_at_most_about_a_million_parameters(name):
    config = ladder.recipe_configuration(name, 0, 3, 0.5)
    with torch.device("meta"):
        net = networks.build(**config.network)
    assert 0.9e6 < networks.count_parameters(net) < 1.05e6


def test_a_candidate_is_trained_and_measured_once(tmp_path, monkeypatch, capsys):
    small = {"name": "resnet", "channels": [8], "stem": 4, "embedding_dim": 8}
    monkeypatch.setattr(ladder, "CANDIDATES", {"a": ("small", small, {"batch_size": 4}), "b": ("small", small, {})})
    for name, value in (("RECIPE_SIZE", 16), ("RECIPE_TIMESTEPS", (99, 899)), ("DECISIVE", ("a",))):
        monkeypatch.setattr(ladder, name, value)
    out = tmp_path / "recipe.json"
    ladder.main(["recipe", "--minutes", "0.002", "--out", str(out)])
    results = json.loads(out.read_text())
    assert [(r["candidate"], r["seed"]) for r in results] == [("a", 0), ("b", 0), ("a", 1)]
    assert all(r["images_seen"] > 0 and len(r["held_out_error_of_x0_as_share_of_variance"]) == 2 for r in results)
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split(":")[0] for line in lines] == ["a, seed 0", "b, seed 0", "a, seed 1"]
    monkeypatch.setattr(ladder, "measure_candidate", None)  # would fail if it were called
    ladder.main(["recipe", "--minutes", "0.002", "--out", str(out)])
    assert json.loads(out.read_text()) == results


def test_an_unknown_candidate_is_named():
    with pytest.raises(ValueError, match="no candidate named 'x': choose out of chosen, slower"):
        ladder.main(["recipe", "x"])


class Blind:
    """Says "a red sedan facing left by day" of every picture."""

    def read(self, images):
        return torch.zeros(len(images), 4, dtype=torch.int64)


@pytest.fixture
def text_weights(tiny_weights):
    """Function: (path, data, autoencoder) writes weights that take prompts, for 16×16 pictures or an autoencoder's
    latents of them."""

    def write(path, data, autoencoder=None):
        channels = {} if autoencoder is None else {"picture_channels": 2}
        network = {
            "name": "text_to_image",
            "words": ["a", "red", "van"],
            "length": 3,
            "text_dim": 8,
            "text_depth": 1,
            "net": {"name": "resnet", "channels": [8, 8], "attention": [2], "embedding_dim": 8, **channels},
        }
        card = {"prompts": ["a red van"], "data": data, "images_seen": 7, "seconds": 1, "macs": 1}
        return str(tiny_weights(path, network=network, size=16, autoencoder=autoencoder, **card))

    return write


def test_prompt_accuracy_is_measured_once_for_every_way(tmp_path, monkeypatch, capsys, text_weights):
    loaded = toy_cars.load(30, 16)
    monkeypatch.setattr(ways, "train_reader", lambda cars: Blind())
    monkeypatch.setattr(toy_cars, "load", lambda *args, **more: loaded)
    (tmp_path / "mine" / "snapshots").mkdir(parents=True)
    weights = text_weights(tmp_path / "mine/snapshots/weights_000000007.safetensors", "toy cars")
    command = ["prompts", "--weights", weights, "--times", "1", "--results", str(tmp_path), "--only", "w = 0", "w = 1"]
    ways.main(command)
    ways.main(command)
    rows = json.loads((tmp_path / "prompts-mine.json").read_text())
    assert [row["way"] for row in rows] == ["w = 0", "w = 1"] and {row["count"] for row in rows} == {288}
    # red sedans are no held-out kind; one body in six, one of 252 kinds
    assert rows[0]["seen"]["all"] == round(1 / 252, 4) and rows[0]["held_out"]["all"] == 0
    assert rows[0]["seen"]["direction"] == 0.5 and rows[0]["held_out"]["time"] == round(1 / 3, 4)
    shares = [(loaded.labels[:, i] == 0).double().mean().item() for i in range(4)]
    assert [rows[0]["real"][name] for name in ("body", "colour", "direction", "time")] == [round(s, 4) for s in shares]
    assert "w = 1" in capsys.readouterr().out


def test_two_commands_that_measure_at_once_keep_both_rows(tmp_path):
    path = tmp_path / "a.json"
    one, other = ways.Results(path), ways.Results(path)
    one.add({"way": "a"})
    other.add({"way": "b"})
    assert json.loads(path.read_text()) == [{"way": "a"}, {"way": "b"}] and other.find({"way": "a"})


@pytest.fixture
def cars(monkeypatch):
    """A hundred toy cars with names and classes of photographs."""
    classes = ["Ford F-150 Regular Cab 2007", "Audi TT RS Coupe 2012"]
    names = [f"{i:05d}.jpg" for i in range(100)]
    photos = stanford_cars.CarPictures(toy_cars.load(100, 16).images, names, torch.arange(100) % 2, classes, [])
    monkeypatch.setattr(stanford_cars, "load", lambda size: photos)
    return photos


def test_prompts_of_photographs_are_judged_by_pixels_and_features(tmp_path, cars, monkeypatch, text_weights):
    asked = []
    drawn = cars.part(True).half(True).images
    monkeypatch.setattr(Pipeline, "__call__", lambda pipe, seeds, prompt, **way: asked.append(prompt) or drawn)
    weights = text_weights(tmp_path / "photos.safetensors", "Stanford Cars")
    ways.main(["prompts", "--weights", weights, "--results", str(tmp_path), "--only", "not guided"])
    (row,) = json.loads((tmp_path / "prompts-photos.json").read_text())
    assert len(asked[0]) == len(drawn) == row["count"] < len(cars.part(True).images) and row["part"] == "test"
    assert all(text.startswith(("a ", "an ")) and text.endswith(("pickup", "coupe")) for text in asked[0])
    assert row["colour"] == row["real"]["colour"] == 1 and row["body"] == row["real"]["body"]  # drawn: the photographs
    assert abs(row["generated"]["kid"]) < 0.2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--weights", "stanford-cars-1m"], "takes no prompts"),
        (["--weights", "toy-cars-text", "--only", "w = 77"], "no way of drawing named 'w = 77'"),
    ],
)
def test_what_prompts_cannot_measure_is_said(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        ways.main(["prompts", *arguments, "--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_latents_are_measured_beside_pixels(tmp_path, cars, capsys, text_weights, tiny_weights):
    network = {"name": "autoencoder", "channels": [8, 8], "latent_channels": 2}
    path = tmp_path / "vae.safetensors"
    encoder = str(tiny_weights(path, network=network, size=16, seconds=30, images_seen=9))
    (tmp_path / "pixels").mkdir()
    text_weights(tmp_path / "pixels/weights.safetensors", "Stanford Cars")
    latents = text_weights(tmp_path / "latents.safetensors", "Stanford Cars", autoencoder=encoder)
    weights = [str(tmp_path / "pixels"), latents]
    chosen = ["not guided", "without middle and caption, w = 3"]
    own = ["--autoencoders", encoder, "--results", str(tmp_path), "--count", "4", "--only", *chosen]
    for _ in range(2):
        ways.main(["latent", *weights, *own])
    found = json.loads((tmp_path / "latent.json").read_text())
    assert [(row["weights"], row["way"]) for row in found["networks"]] == [
        (name, way) for name in ("pixels", "latents") for way in chosen
    ]
    first, *_, last = found["networks"]
    assert last["skip_layers"] == ["net.encoder.2"] and first["skip_layers"] is None
    assert "latent" not in first and last["latent"] == [2, 4, 4] and last["autoencoders_seconds"] == 30
    assert last["decoders_macs"] > 0
    assert last["decoders_parameters"] == networks.count_parameters(pretrained.load(encoder).net.decoder)
    (lost,) = found["autoencoders"].values()
    assert (
        lost["latent"] == [2, 4, 4]
        and lost["counts"]["generated"] == len(sets.load("stanford_cars", 16).part("test"))
        and lost["psnr"] < 30
    )
    speed.main(["latent", *weights, "--results", str(tmp_path), "--rounds", "1"])
    times = json.loads((tmp_path / "latent-speed.json").read_text())["networks"]
    assert times["pixels"]["ratio"] == 1 and times["latents"]["seconds"] > 0
    for weights, message in ((["stanford-cars-1m"], "takes no prompts"), ([latents, latents], "different names")):
        with pytest.raises(ValueError, match=message):
            ways.main(["latent", *weights, "--results", str(tmp_path)])


@pytest.mark.parametrize("name", ["ideal", "ladder", "peers", "speed", "ways"])
def test_a_command_line_that_cannot_be_read_is_one_sentence(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--colour", "red"])
    with pytest.raises(SystemExit) as stop:
        {"ideal": ideal, "ladder": ladder, "peers": peers, "speed": speed, "ways": ways}[name].main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and "│" not in said


# ---------------------------------------------------------------- what a GPU is wanted for


def test_packed_cars_come_back_as_they_were(tmp_path, monkeypatch):
    toys = gpu.toys()
    monkeypatch.setattr(stanford_cars, "load", lambda size: toys)
    gpu.main(["--pack", str(tmp_path / "cars.npz")])
    cars = gpu.unpack(tmp_path / "cars.npz")
    assert torch.equal(cars.images, toys.images) and torch.equal(cars.labels, toys.labels)
    assert (cars.names, cars.classes) == (toys.names, toys.classes) and cars.body_types().unique().numel() == 2
    (tmp_path / "words").write_text("no cars")
    with pytest.raises(ValueError, match="words holds no packed cars: write it with --pack"):
        gpu.main(["--pictures", str(tmp_path / "words")])
    with gpu.cars_from(cars):
        assert stanford_cars.load(size=16) is cars
        with pytest.raises(ValueError, match="the packed cars have 16 pixels a side, not 64"):
            stanford_cars.load(size=64)


def test_what_is_done_is_noted_and_the_next_call_goes_on(tmp_path, monkeypatch, capsys):
    did, stopped = [], [True]

    def item(name, result):
        return lambda: did.append(name) or result()

    def items(self):
        cut = item("b", lambda: None if stopped.pop() else {"rate": 2})
        return {"a": (item("a", lambda: {"rate": 1}), 5.0), "b": (cut, 5.0), "long": (item("long", dict), 1000.0)}

    monkeypatch.setattr(gpu.Gpu, "items", items)
    for minutes in (1, 1, 60):
        gpu.main(["--out", str(tmp_path), "--minutes", str(minutes)])
        stopped.append(False)
    assert did == ["a", "b", "b", "long"]
    said = [line for line in capsys.readouterr().out.splitlines() if not line.endswith(":")]
    assert said[0] == "b was stopped: the same command goes on"
    assert said[1:] == ["the time is used before long: the same command goes on", f"all is done: see {tmp_path}"]
    done = json.loads((tmp_path / "done.json").read_text())
    assert [*done] == ["a", "b", "long"] and done["b"]["rate"] == 2 and done["a"]["machine"]


def test_a_training_that_the_budget_cuts_off_goes_on_with_its_options(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "load", LOAD)

    def keep(job, record):  # the alarm comes after the first record
        if record.step == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Job, "keep", keep)
    work = gpu.Gpu(out=tmp_path, images=240, batch_size=8, tiny=True)
    item, _ = work.items()["failing"]
    with gpu.cars_from(gpu.toys()):
        assert item() is None
        assert item() == {"run": str(tmp_path / "failing")}
    card = pretrained.card(tmp_path / "failing" / "weights.safetensors")
    assert (card["prediction_type"], card["images_seen"], card["config"]["optimizer"]) == ("epsilon", 240, "muon")
    assert [r["step"] for r in read_log(tmp_path / "failing" / "log.jsonl")] == [20, 21, 30]


def test_the_items_are_of_the_sizes_that_they_say():
    items = gpu.Gpu(out=Path("runs")).items()
    assert [*items][:2] == ["throughput", "headline"] and {f"peer {name}" for name in peers.PEERS} < {*items}
    for name, channels in gpu.CHANNELS.items():
        count = networks.count_parameters(networks.build(**{**presets.CARS_1M, "channels": channels}))
        assert count == pytest.approx(1e6 * float(name), rel=0.05)
    sizes = [networks.count_parameters(networks.build(**net)) for net in (gpu.CARS, gpu.SEGNET)]
    assert sizes == pytest.approx([1e6, 1e6], rel=0.1)


# ---------------------------------------------------------------- reflow


def test_reflow_pairs_each_noise_with_its_own_walk_and_trains_on_that(tmp_path, save, monkeypatch):
    weights = save(tmp_path / "toy.safetensors", size=16)
    denoiser, shape = pretrained.load(weights), (3, 16, 16)
    noise, pictures = flow.walks(denoiser, range(3, 6), shape, 4)
    assert torch.equal(noise, sampling.Noise([3, 4, 5], shape)())
    assert torch.equal(pictures, sampling.sample(denoiser, [3, 4, 5], shape, "ddim", 4))
    seen = []

    def loss(self, x0, epsilon, t):  # each picture is seen with its own noise, mirrored or not, both alike
        whole = [torch.cat([a, b], 1) for a, b in ((noise, pictures), (noise.flip(3), pictures.flip(3)))]
        both = torch.cat([epsilon, x0], 1)
        seen.append([any(torch.equal(one, pair) for part in whole for pair in part) for one in both])
        return self.net(x0, t).square().mean()

    monkeypatch.setattr(type(denoiser), "loss", loss)
    before = [p.clone() for p in denoiser.net.parameters()]
    flow.reflow(denoiser, noise, pictures, 128, 1e-3, 0)
    assert [len(batch) for batch in seen] == [64, 64] and all(map(all, seen))
    assert any(not torch.equal(a, b) for a, b in zip(before, denoiser.net.parameters()))


def test_reflow_is_measured_once_before_and_after(tmp_path, save):
    weights = save(tmp_path / "toy.safetensors", size=16)
    own = ["--weights", str(weights), "--results", str(tmp_path), "--runs", str(tmp_path / "runs")]
    own += ["--picture", str(tmp_path / "p.png"), "--pairs", "5", "--walk", "2", "--images", "64", "--count", "6"]
    flow.main(own)
    stored = (tmp_path / "reflow-toy.json").read_bytes()
    rows = json.loads(stored)
    assert [(row["network"], row["steps"]) for row in rows] == [(s, n) for s in ("before", "after") for n in flow.STEPS]
    assert rows[0]["kid"] != rows[4]["kid"] and (tmp_path / "p.png").exists()
    flow.main(own)
    assert (tmp_path / "reflow-toy.json").read_bytes() == stored


# ---------------------------------------------------------------- one's own pictures


class Always:
    """A reader that sees an a everywhere."""

    def read(self, images):
        return torch.zeros(len(images), 1, dtype=torch.int64)


@pytest.fixture
def hasty(monkeypatch, tmp_path, tiny_weights):
    """Few letters, tiny networks, and weights to begin with."""
    network = {key: value for key, value in TINY.items() if key != "cond_dim"}
    advice = {"sampler": "ddim", "steps": 2, "guidance_scale": 1.0}
    base = str(tiny_weights(tmp_path / "base.safetensors", network=network, conditions=KINDS, drawing=advice, size=64))
    for name, value in {"EACH": 1, "NETWORKS": {"small": network}, "CARS_1M": network, "BASE": base}.items():
        monkeypatch.setattr(own, name, value)
    monkeypatch.setattr(own, "reader", Always)
    toys = toy_cars.load(40, 64).images.repeat(3, 1, 1, 1)
    names, classes = [f"{i:03d}.jpg" for i in range(120)], ["Jeep Wrangler SUV 2012", "Audi TTS Coupe 2012"]
    photos = stanford_cars.CarPictures(toys, names, torch.arange(120) % 2, classes, [])
    monkeypatch.setattr(stanford_cars, "load", lambda size: photos)


def test_what_it_takes_is_counted_once(hasty, tmp_path):
    arguments = ["counts", "--counts", "12", "--minutes", "0.001", "--results", str(tmp_path)]
    arguments += ["--picture", str(tmp_path / "p.png"), "--runs", str(tmp_path / "runs")]
    own.main(arguments)
    (row,) = json.loads((tmp_path / "own-counts.json").read_text())
    assert row["count"] == 12 and row["images_seen"] > 0 and row["readable"] == round(1 / 26, 4)
    assert row["error_known"] > 0 and row["copies"] >= 0 and (tmp_path / "p.png").stat().st_size > 1000
    own.main(arguments)
    assert json.loads((tmp_path / "own-counts.json").read_text()) == [row]


def test_tuning_is_compared_with_training_from_nothing(hasty, tmp_path):
    arguments = ["tuning", "--minutes", "0.001", "--count", "12", "--results", str(tmp_path)]
    own.main([*arguments, "--pictures", str(tmp_path), "--runs", str(tmp_path / "runs")])
    rows = json.loads((tmp_path / "own-tuning.json").read_text())
    assert [(row["data"], row["way"]) for row in rows] == [
        (data, way) for data in ("letters", "cars") for way in own.WAYS
    ]
    assert {row["count"] for row in rows if row["data"] == "letters"} == {12}
    assert all(row["error_unseen"] > 0 and row["error_cars"] > 0 for row in rows)
    sizes = {row["way"]: row["bytes"] for row in rows if row["data"] == "cars"}
    assert sizes["from nothing"] == sizes["all weights"] != sizes["adapters"]
    assert (tmp_path / "fine_tuning_letters.png").exists() and (tmp_path / "fine_tuning_cars.png").exists()
