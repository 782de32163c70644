"""Weights and model cards: saved, loaded, and refused with a clear sentence when unfit."""

import json
import struct

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from diffusion_utils import networks, pipeline, pretrained
from diffusion_utils.data import to_float, toy_cars
from diffusion_utils.evaluation import error_per_timestep
from diffusion_utils.networks.super_resolution import low_resolution_cond, shrink
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import sample

SMALL = {"name": "resnet", "channels": [8, 16], "stem": 2, "embedding_dim": 8}
ABOUT = {
    "network": SMALL,
    "prediction_type": "v_prediction",
    "schedule": "linear",
    "num_train_timesteps": 50,
    "zero_terminal_snr": True,
    "size": 8,
    "data": "made up, größer",
}


@pytest.fixture(scope="module")
def make_denoiser(tiny_denoiser):
    return lambda seed=0, about=ABOUT: tiny_denoiser(seed, **about)[0]


@pytest.fixture
def saved(tmp_path, tiny_weights):
    return tiny_weights(tmp_path / "mine.safetensors", **ABOUT)


@torch.no_grad()
def answer(denoiser):
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return denoiser(x, torch.tensor([0, 10, 30, 49]))


def test_what_is_saved_comes_back(saved, make_denoiser):
    before, after = make_denoiser(), pretrained.load(saved)
    torch.testing.assert_close(answer(after), answer(before), atol=0.02, rtol=0.02)
    other = answer(make_denoiser(seed=1))
    assert (answer(after) - other).abs().max() > 0.5  # so "close" says something
    assert after.prediction_type == "v_prediction"
    torch.testing.assert_close(after.schedule.alphas_cumprod, before.schedule.alphas_cumprod, atol=0, rtol=0)


def test_float32_comes_back_bit_for_bit(tmp_path, make_denoiser):
    path = tmp_path / "full.safetensors"
    pretrained.save(path, make_denoiser(), ABOUT, dtype=torch.float32)
    assert torch.equal(answer(pretrained.load(path)), answer(make_denoiser()))


def test_the_strength_of_the_pictures_comes_back(tmp_path, make_denoiser):
    about = {**ABOUT, "prediction_type": "edm", "sigma_data": 0.7}
    before = Denoiser(make_denoiser().net, make_denoiser().schedule, "edm", 0.7)
    pretrained.save(tmp_path / "edm.safetensors", before, about, dtype=torch.float32)
    after = pretrained.load(tmp_path / "edm.safetensors")
    assert after.sigma_data == 0.7 and torch.equal(answer(after), answer(before))


NETWORKS = [
    {"name": "resnet", "channels": [8, 16], "skip": "concat", "attention": [2], "upsample": "nearest"},
    {"name": "resnet", "channels": [8, 16], "skip": "indices", "decoder_depth": 1, "timestep": False},
    {"name": "segnet", "channels": [8, 16], "cond_dim": 3},
    {"name": "unet", "channels": [8, 16], "attention": [1]},
    {"name": "dit", "dim": 24, "depth": 1, "cond_dim": 3},
    {"name": "mixer", "size": 8, "dim": 16, "depth": 1},
]


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_every_network_comes_back(tmp_path, network, make_denoiser):
    about = {**ABOUT, "network": network}
    before = make_denoiser(about=about)
    pretrained.save(tmp_path / "a.safetensors", before, about, dtype=torch.float32)
    assert torch.equal(answer(pretrained.load(tmp_path / "a.safetensors")), answer(before))


def test_weights_are_stored_in_half_precision_by_default(saved, tmp_path, make_denoiser):
    pretrained.save(tmp_path / "full.safetensors", make_denoiser(), ABOUT, dtype=torch.float32)
    half, full = saved.stat().st_size, (tmp_path / "full.safetensors").stat().st_size
    numbers = networks.count_parameters(make_denoiser().net)
    assert 0 <= full - half - 2 * numbers < 200  # the headers differ by some characters


def test_the_same_file_gives_the_same_weights_every_time(saved):
    one, two = pretrained.load(saved), pretrained.load(str(saved))
    torch.manual_seed(99)  # whatever else is going on
    for a, b in zip(one.net.state_dict().values(), two.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(answer(one), answer(two))


def test_a_loaded_network_is_ready_for_use(saved):
    net = pretrained.load(saved).net
    assert not net.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in net.parameters())


def test_the_card_holds_what_was_said_and_the_parameters(saved, make_denoiser):
    about = pretrained.card(saved)
    parameters = networks.count_parameters(make_denoiser().net)
    assert about == {"parameters": parameters, **ABOUT}
    assert "größer" in saved.with_suffix(".json").read_text(encoding="utf-8")


def test_a_card_that_was_read_already_is_not_read_again(saved, make_denoiser):
    about = pretrained.card(saved)
    expected = answer(pretrained.load(saved))
    saved.with_suffix(".json").unlink()
    assert torch.equal(answer(pretrained.load(saved, contents=about)), expected)


def test_an_autoencoders_path_is_kept_as_seen_from_the_card(tmp_path, tiny_weights):
    network = {"name": "autoencoder", "channels": [8, 8], "latent_channels": 2}
    encoder = tiny_weights(tmp_path / "run" / "own.safetensors", network=network)
    latents = {"network": {**SMALL, "stem": 1, "picture_channels": 2}}
    path = tiny_weights(tmp_path / "run" / "mine.safetensors", **latents, autoencoder=str(encoder))
    assert pretrained.card(path)["autoencoder"] == "own.safetensors"
    (tmp_path / "run").rename(tmp_path / "moved")
    path = tmp_path / "moved" / "mine.safetensors"
    assert pretrained.autoencoder_of(path) == str(tmp_path / "moved" / "own.safetensors")
    expected = pretrained.load_autoencoder(tmp_path / "moved" / "own.safetensors").state_dict()
    loaded = pretrained.load(path).autoencoder.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())
    (tmp_path / "moved" / "own.safetensors").unlink()
    with pytest.raises(ValueError, match="draws latents of .*own.safetensors, which is missing"):
        pretrained.load(path)
    shipped = tiny_weights(tmp_path / "other.safetensors", **latents, autoencoder="stanford-cars-autoencoder-4")
    assert pretrained.autoencoder_of(shipped) == "stanford-cars-autoencoder-4"
    assert pretrained.autoencoder_of("toy-cars-resnet") is None


def test_saving_does_not_change_the_network(tmp_path, make_denoiser):
    denoiser = make_denoiser()
    before = answer(denoiser)
    pretrained.save(tmp_path / "a.safetensors", denoiser, ABOUT)
    assert torch.equal(answer(denoiser), before)


def test_save_refuses_a_card_that_could_not_be_loaded(tmp_path, make_denoiser):
    short = {k: v for k, v in ABOUT.items() if k not in ("schedule", "network")}
    with pytest.raises(ValueError, match="the card lacks network, schedule"):
        pretrained.save(tmp_path / "a.safetensors", make_denoiser(), short)
    with pytest.raises(ValueError, match="the card lacks sigma_data"):
        pretrained.save(tmp_path / "a.safetensors", make_denoiser(), {**ABOUT, "prediction_type": "edm"})
    with pytest.raises(ValueError, match="a.pt must end in .safetensors"):
        pretrained.save(tmp_path / "a.pt", make_denoiser(), ABOUT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, -1])
def test_a_truncated_file_is_refused(saved, kept):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match="mine.safetensors is damaged or not a safetensors file"):
        pretrained.load(saved)


def test_a_foreign_file_is_refused(saved):
    Image.new("RGB", (64, 64), "red").save(saved, format="PNG")
    with pytest.raises(ValueError, match="not a safetensors file.*download or train it again"):
        pretrained.load(saved)


def test_a_header_that_promises_too_much_is_refused(saved):
    saved.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(ValueError, match="not a safetensors file"):
        pretrained.load(saved)


@pytest.mark.parametrize("network", [{**SMALL, "channels": [8, 8]}, {**SMALL, "depth": 2}, {**SMALL, "stem": 1}])
def test_weights_of_another_network_are_refused(saved, network):
    about = {**ABOUT, "network": network}
    saved.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(
        ValueError, match=r"another network than its card says \(.*(stem|coder).*\): use the card's own file"
    ):
        pretrained.load(saved)


def test_an_unknown_network_or_option_on_the_card_is_refused(saved):
    for network, text in (
        ({"name": "transformer"}, "unknown network 'transformer'"),
        ({**SMALL, "skips": True}, "skips"),
    ):
        saved.with_suffix(".json").write_text(json.dumps({**ABOUT, "network": network}))
        with pytest.raises(ValueError, match=text):
            pretrained.load(saved)


def test_a_missing_card_is_told(saved):
    saved.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="mine.json is missing: weights need the model card"):
        pretrained.load(saved)


@pytest.mark.parametrize("text", ["", '{"network": {', "7", "[]", '"a card"', "{}", "null"])
def test_a_damaged_card_is_told(saved, text):
    saved.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match="mine.json is not a model card"):
        pretrained.load(saved)


def test_a_card_of_bytes_that_are_no_text_is_told(saved):
    saved.with_suffix(".json").write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(ValueError, match="mine.json is not a model card"):
        pretrained.load(saved)


def test_a_card_names_what_it_lacks(saved):
    about = {k: v for k, v in ABOUT.items() if k != "prediction_type"}
    saved.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="it lacks prediction_type"):
        pretrained.card(saved)


def test_an_unknown_name_lists_the_known_ones(saved, tmp_path, monkeypatch, make_denoiser):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    pretrained.save(tmp_path / "yours.safetensors", make_denoiser(), ABOUT)
    assert pretrained.names() == ["mine", "yours"]
    assert torch.equal(answer(pretrained.load("mine")), answer(pretrained.load("yours")))
    for asked in (pretrained.load, pretrained.card):
        with pytest.raises(FileNotFoundError, match="no weights named 'ours'.*yours, mine"):
            asked("ours")


def test_without_shipped_weights_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="none shipped"):
        pretrained.load("ours")


class OnlyConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.strided = nn.Conv2d(8, 5, 3, stride=2, padding=1)

    def forward(self, x, t):
        return self.strided(self.convolution(x))


def test_multiply_accumulates_of_two_convolutions():
    # Each output number takes kernel² × input channels multiplications.
    by_hand = (8 * 16 * 12) * (9 * 3) + (5 * 8 * 6) * (9 * 8)
    assert networks.count_macs(OnlyConvolution(), (3, 16, 12)) == by_hand


def test_multiply_accumulates_of_attention():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = networks.blocks.SelfAttention(32)

        def forward(self, x, t):
            return self.attention(x)

    places = 6 * 4  # of which each looks at each, twice: to compare and to gather
    by_hand = places * (32 * 96 + 32 * 32) + 2 * places * places * 32
    assert networks.count_macs(Attention(), (32, 6, 4)) == by_hand


def test_machine_names_processor_torch_and_date():
    about = pretrained.machine()
    assert set(about) == {"machine", "torch", "date"} and all(about.values())
    json.dumps(about)


@pytest.mark.parametrize("name", pretrained.names())
def test_shipped_weights_are_small_and_draw(name):
    about, denoiser = pretrained.card(name), pretrained.load(name)
    size, kind = about["size"], about["network"]["name"]
    parameters = networks.count_parameters(denoiser.net)
    # The bar of a million is the picture network's; words come on top.
    assert about["parameters"] == parameters <= (1_250_000 if kind == "text_to_image" else 1_000_000)
    assert (pretrained.FOLDER / f"{name}.safetensors").stat().st_size <= 4 * 2**20
    encoder = denoiser.autoencoder
    shape = (3, size, size) if encoder is None else encoder.latent_shape(size, size)
    assert about["macs"] == networks.count_macs(denoiser.net, shape)
    for key in ("data", "licence", "images_seen", "seconds", "machine", "date", "training_loss"):
        assert about[key], key
    if kind == "super_resolution":
        small = toy_cars.load(4, size // 2).images
        drawn = to_float(pipeline.load(name).enlarge(small, range(4), steps=5))
    elif kind == "autoencoder":  # the latents of a few cars, from which it shall make them again
        cars = to_float(toy_cars.load(4, size).images)
        drawn = denoiser.net.from_latents(denoiser.net.to_latents(cars))
        assert (drawn - cars).square().mean() < 0.1 * cars.var()
    elif encoder is not None:
        drawn = to_float(pipeline.load(name)(range(4), steps=10))
    else:
        drawn = sample(denoiser, range(4), (3, size, size), steps=10)
    assert drawn.isfinite().all() and drawn.abs().max() < 1.5
    assert drawn.std(0).mean() > 0.05  # four different pictures


@pytest.mark.parametrize("name", [n for n in pretrained.names() if n.startswith("toy-cars")])
def test_shipped_toy_weights_see_through_noise(name):
    about = pretrained.card(name)
    denoiser, images = pretrained.load(name), toy_cars.load(64, about["size"], seed=1).images
    cond, t = None, about["num_train_timesteps"] // 2
    if about["network"]["name"] == "super_resolution":
        small = shrink(to_float(images))
        cond = low_resolution_cond(
            small, denoiser.schedule, torch.zeros(64, dtype=torch.int64), torch.zeros_like(small)
        )
    assert error_per_timestep(denoiser, images, [t], cond=cond)[0] < 0.5


# ---------------------------------------------------------------- numbers that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_loaded_nor_saved(tmp_path, tiny_weights, value):
    path = tiny_weights(tmp_path / "mine.safetensors")
    denoiser, card = pretrained.load(path), pretrained.card(path)
    weights = load_file(path)
    weights["head.2.bias"][0] = value
    save_file(weights, path)
    with pytest.raises(ValueError, match=rf"{path}: .* not finite, in head.2.bias: download or train"):
        pretrained.load(path)
    denoiser.net.head[2].bias[0] = value
    with pytest.raises(ValueError, match="not finite, in head.2.bias"):
        pretrained.save(tmp_path / "new.safetensors", denoiser, card)
    assert not list(tmp_path.glob("new*"))


def test_weights_beyond_half_precision_are_not_saved_as_infinite_ones(tmp_path, tiny_denoiser):
    denoiser, card = tiny_denoiser()
    denoiser.net.head[2].bias.data[0] = 1e5
    with pytest.raises(ValueError, match="not finite"):
        pretrained.save(tmp_path / "a.safetensors", denoiser, card)
    pretrained.save(tmp_path / "a.safetensors", denoiser, card, torch.float32)
    assert pretrained.load(tmp_path / "a.safetensors").net.head[2].bias[0] == 1e5


# ---------------------------------------------------------------- cards edited by hand

SHARES = {"red": 0.5, "blue": 0.5}
EDITED = {
    "no dict": ({"network": "resnet"}, "network must be a dict, not 'resnet'"),
    "no name": ({"network": {"channels": [8]}}, "network must be a text, not None"),
    "null": ({"network": None}, "it lacks network"),
    "width": ({"network": SMALL | {"channels": [16, 0]}}, "channels must be at least 1, not [16, 0]"),
    "size": ({"size": "32"}, "size must be a whole number, not '32'"),
    "no size": ({"size": 0}, "size must be greater than 0, not 0"),
    "odd size": ({"size": 9}, "size 9 does not fit the network, whose stride is 4"),
    "T": ({"num_train_timesteps": "1000"}, "num_train_timesteps must be a whole number, not '1000'"),
    "negative T": ({"num_train_timesteps": -1}, "num_train_timesteps must be greater than 0, not -1"),
    "fraction": ({"num_train_timesteps": 50.5}, "num_train_timesteps must be a whole number, not 50.5"),
    "type": ({"prediction_type": "eps"}, "prediction_type must be one of epsilon, sample"),
    "schedule": ({"schedule": 7}, "schedule must be one of linear, cosine, flow, not 7"),
    "together": ({"prediction_type": "epsilon"}, "epsilon prediction cannot work with a zero-terminal-SNR"),
    "zero": ({"zero_terminal_snr": "false"}, "zero_terminal_snr must be true or false, not 'false'"),
    "sigma_data": ({"sigma_data": float("nan")}, "sigma_data must be a finite number, not nan"),
    "conditions": ({"conditions": ["red"]}, "conditions must be a dict, not ['red']"),
    "shares": ({"conditions": {"red": "0.5"}}, "conditions must be a list, each a finite number, not ['0.5']"),
    "negative share": ({"conditions": {"red": -1, "blue": 2}}, "conditions must be shares of the pictures"),
    "none of them": ({"conditions": SHARES}, "its network takes conditions of shape None, not 2 conditions"),
    "prompts": ({"prompts": "a car"}, "prompts must be a list, each a text, not 'a car'"),
    "prompts, no words": ({"prompts": ["a car"]}, "its network takes no prompts"),
    "autoencoder": ({"autoencoder": 8}, "autoencoder must be a text, not 8"),
    "drawing": ({"drawing": []}, "drawing must be a dict, not []"),
    "advice": ({"drawing": {"steps": "20"}}, "steps must be a whole number, not '20'"),
    "advised sampler": ({"drawing": {"sampler": ["ddim"]}}, "sampler must be a text, not"),
    "advised interval": ({"drawing": {"interval": 5}}, "interval is the lowest and the highest timestep"),
}


@pytest.mark.parametrize("entries, text", EDITED.values(), ids=EDITED)
def test_a_card_edited_by_hand_is_refused_in_one_sentence_that_names_it(saved, entries, text):
    saved.with_suffix(".json").write_text(json.dumps({**ABOUT, **entries}))
    with pytest.raises(ValueError) as error:
        pipeline.load(str(saved))
    assert text in str(error.value) and "mine." in str(error.value) and "\n" not in str(error.value)


def test_a_folder_in_place_of_weights_names_those_in_it(tmp_path, tiny_weights):
    path = tiny_weights(tmp_path / "weights.safetensors")
    with pytest.raises(OSError, match=f"{tmp_path} is a folder: give the weights in it, {path}"):
        pretrained.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"give one of stanford-cars-1m, .* … \(\d+ in all\), or the path"):
        pretrained.load("stanford-cars-1k")


def test_a_path_that_leads_to_no_weights_is_called_a_path(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a picture")
    with pytest.raises(ValueError, match="a.png is no .safetensors file"):
        pretrained.load(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match="b.safetensors does not exist"):
        pretrained.load(tmp_path / "b.safetensors")
