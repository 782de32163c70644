"""What the command line, and a model card, make of a seed."""

import argparse
import json

import pytest
import torch

from diffusion_utils import drawing, pretrained
from diffusion_utils.data import to_uint8
from diffusion_utils.guidance import Guided, conditions, skip_layers
from diffusion_utils.networks import build
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import sample
from diffusion_utils.schedule import make_schedule

TINY = {"name": "resnet", "channels": [8], "stem": 2, "embedding_dim": 8}
SHARES = {"red": 0.5, "green": 0.3, "blue": 0.2}
SHAPE = (3, 8, 8)


def shipped(path, seed, **card):
    """Weights of a network that draws noise at 8×8."""
    network = {**TINY, "cond_dim": 3} if "conditions" in card else TINY
    torch.manual_seed(seed)
    net = pretrained.networks.build(**network).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    about = {
        "network": network,
        "prediction_type": "sample",
        "schedule": "cosine",
        "num_train_timesteps": 100,
        "zero_terminal_snr": False,
        "size": 8,
        **card,
    }
    pretrained.save(path, Denoiser(net, pretrained.make_schedule("cosine", 100), "sample"), about)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {
        "plain": shipped(folder / "plain.safetensors", 0),
        "told": shipped(folder / "told.safetensors", 1, conditions=SHARES),
        "weak": shipped(folder / "weak.safetensors", 2, conditions=SHARES),
    }


def parse(weights, *arguments):
    parser = argparse.ArgumentParser()
    drawing.add_arguments(parser)
    return parser.parse_args(["--weights", str(weights), "--device", "cpu", *map(str, arguments)])


def load(weights, *arguments, seeds=range(5)):
    args = parse(weights, *arguments)
    return drawing.load(weights, seeds, args.condition, drawing.settings(args))


def test_plain_weights_give_their_denoiser(files):
    assert isinstance(load(files["plain"]), Denoiser)


def test_told_weights_draw_something_of_their_own_for_every_seed(files):
    guided = load(files["told"], seeds=range(3, 8))
    assert torch.equal(guided.cond, conditions(SHARES, range(3, 8)))
    assert guided.guidance_scale == 1 and guided.guide is None


def test_a_condition_is_for_all_pictures_and_none_for_none(files):
    assert torch.equal(load(files["told"], "--condition", "blue").cond, torch.tensor([[0.0, 0, 1]] * 5))
    assert isinstance(load(files["told"], "--condition", "none"), Denoiser)


def test_guidance_is_that_of_the_command_line(files):
    guided = load(files["told"], "--guidance-scale", 2, "--guide", files["weak"], "--interval", 20, 60)
    assert (guided.guidance_scale, guided.interval) == (2, (20, 60))
    expected = pretrained.load(files["weak"]).net.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in guided.guide.net.state_dict().items())


def test_the_card_advises_and_the_command_line_decides(files, tmp_path):
    advice = {
        "sampler": "ddpm",
        "steps": 7,
        "guidance_scale": 3.0,
        "guide": str(files["weak"]),
        "skip_layers": None,
        "interval": [1, 50],
        "time_shift": 3,
        "guide_described": False,
    }
    path = shipped(tmp_path / "advised.safetensors", 1, conditions=SHARES, drawing=advice)
    assert drawing.settings(parse(path)) == advice
    guided = load(path)
    assert guided.guidance_scale == 3 and guided.interval == (1, 50) and guided.guide is not None
    assert guided.time_shift == 3 and not guided.guide_described
    own = parse(
        path, "--sampler", "ddim", "--steps", 9, "--guidance-scale", 1.5, "--guide", "none", "--guide-described"
    )
    assert drawing.settings(own) == {
        "sampler": "ddim",
        "steps": 9,
        "guidance_scale": 1.5,
        "guide": None,
        "skip_layers": None,
        "interval": [1, 50],
        "time_shift": 3,
        "guide_described": True,
    }
    assert drawing.load(path, range(2), how=drawing.settings(own)).guide is None
    assert drawing.load(path, range(2)).guide is not None and drawing.advice(path) == advice


@torch.no_grad()
def test_layers_are_skipped_in_the_guide(files):
    guided = load(files["told"], "--guidance-scale", 2, "--skip-layers", "encoder.0")
    x, t = torch.randn(5, *SHAPE), torch.full((5,), 60)
    worse = skip_layers(guided.denoiser, ["encoder.0"])(x, t, guided.cond)
    better = guided.denoiser(x, t, guided.cond)
    assert not torch.equal(better, worse)
    torch.testing.assert_close(guided(x, t), worse + 2 * (better - worse))


def test_another_worse_guess_takes_the_place_of_the_advised_one(files, tmp_path):
    def chosen(advised, *arguments):
        path = shipped(tmp_path / "advised.safetensors", 1, conditions=SHARES, drawing=advised)
        how = drawing.settings(parse(path, *arguments))
        return how["guide"], how["skip_layers"]

    skip, guide = {"skip_layers": ["encoder.0"]}, {"guide": "weak"}
    assert chosen(skip) == (None, ["encoder.0"])
    assert chosen(skip, "--guide", "other") == ("other", None)
    assert chosen(skip, "--skip-layers", "none") == chosen(skip, "--guide", "none") == (None, None)
    assert chosen(guide) == ("weak", None)
    assert chosen(guide, "--skip-layers", "decoder.1") == (None, ["decoder.1"])
    assert chosen(guide, "--skip-layers", "none") == (None, None)
    assert chosen(guide, "--guide", "other", "--skip-layers", "none") == ("other", None)
    with pytest.raises(ValueError, match="--guide and --skip-layers both make the worse guess"):
        chosen({}, "--guide", "other", "--skip-layers", "decoder.1")


def test_a_time_shift_alone_needs_no_condition(files):
    guided = load(files["plain"], "--time-shift", 7)
    assert guided.time_shift == 7 and guided.cond is None and guided.guidance_scale == 1


def test_without_advice_there_are_defaults(files):
    assert drawing.settings(parse(files["plain"])) == drawing.DEFAULTS


def test_guided_pictures_are_those_of_their_seeds_in_whatever_batches(files, monkeypatch):
    guided = load(files["told"], "--guidance-scale", 2)
    whole = drawing.draw(guided, range(5), 8, "ddim", 3, "cpu")
    monkeypatch.setattr(drawing, "BATCH", 2)
    parts = drawing.draw(guided, range(5), 8, "ddim", 3, "cpu")
    assert whole.dtype == torch.uint8 and whole.shape == (5, *SHAPE)
    assert (whole.int() - parts.int()).abs().max() <= 1  # another batch size rounds otherwise
    alone = sample(guided.part(slice(3, 4)), [3], SHAPE, "ddim", 3)
    assert ((alone[0].clamp(-1, 1) + 1) * 127.5 - whole[3]).abs().max() < 2


@pytest.mark.parametrize(
    "name, arguments, text",
    [
        ("plain", ["--condition", "red"], "takes no condition: leave --condition out"),
        ("told", ["--condition", "pink"], "choose one of red, green, blue"),
        ("plain", ["--guidance-scale", "2"], "needs a worse guess to walk away from"),
        ("plain", ["--guidance-scale", "2", "--skip-layers", "stem"], "cannot do without 'stem'"),
        ("told", ["--guidance-scale", "2", "--condition", "none"], "needs a worse guess to walk away from"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(files, name, arguments, text):
    with pytest.raises(ValueError, match=text):
        load(files[name], *arguments)


def test_a_guide_that_does_not_exist_is_an_error(files):
    with pytest.raises(FileNotFoundError, match="no weights named 'nobody'"):
        load(files["told"], "--guide", "nobody")


def test_the_card_is_json_and_keeps_the_advice(files, tmp_path):
    path = shipped(tmp_path / "a.safetensors", 1, drawing={"steps": 3})
    assert json.loads(path.with_suffix(".json").read_text())["drawing"] == {"steps": 3}
    assert drawing.settings(parse(path)) == {**drawing.DEFAULTS, "steps": 3}


@torch.no_grad()
def test_latents_are_drawn_and_decoded(tmp_path):
    def save(name, network, **more):
        torch.manual_seed(0)
        net = build(**network)
        for p in net.parameters():
            torch.nn.init.normal_(p, 0, 0.1)
        about = {
            "network": network,
            "prediction_type": "sample",
            "schedule": "cosine",
            "num_train_timesteps": 100,
            "zero_terminal_snr": False,
            "size": 16,
            **more,
        }
        pretrained.save(tmp_path / name, Denoiser(net, make_schedule("cosine", 100), "sample"), about)
        return str(tmp_path / name)

    encoder = save("vae.safetensors", {"name": "autoencoder", "channels": [8, 8], "latent_channels": 2})
    tiny = {"name": "resnet", "channels": [8, 8], "picture_channels": 2, "embedding_dim": 8}
    weights = save("latent.safetensors", tiny, autoencoder=encoder)
    denoiser = pretrained.load(weights)
    drawn = drawing.draw(denoiser, range(3), 16, "ddim", 4)
    latents = sample(denoiser, range(3), (2, 4, 4), "ddim", 4, clamp=False)
    assert drawn.shape == (3, 3, 16, 16)
    assert torch.equal(drawn, to_uint8(denoiser.autoencoder.from_latents(latents)))
    assert torch.equal(drawing.draw(Guided(denoiser, time_shift=0), range(3), 16, "ddim", 4), drawn)
    assert torch.equal(drawing.draw(Guided(denoiser, guide=pretrained.load(weights)), range(3), 16, "ddim", 4), drawn)
    other = save("other.safetensors", {"name": "autoencoder", "channels": [8, 16], "latent_channels": 2})
    for guide in (save("pixels.safetensors", tiny), save("others.safetensors", tiny, autoencoder=other)):
        with pytest.raises(ValueError, match="pixels, or latents of another autoencoder"):
            Guided(denoiser, guide=pretrained.load(guide), guidance_scale=2)
    with pytest.raises(ValueError, match="is no autoencoder"):
        pretrained.load(save("odd.safetensors", tiny, autoencoder=weights))
