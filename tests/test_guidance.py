"""Guidance: what it computes, what it asks the networks, and what comes of it."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from diffusion_utils import networks
from diffusion_utils.guidance import Guided, conditions, skip_layers
from diffusion_utils.networks import build
from diffusion_utils.networks.blocks import ResBlock, SelfAttention
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import SAMPLERS, sample
from diffusion_utils.schedule import make_schedule

SCHEDULE = make_schedule("cosine", 100)


class Says(nn.Module):
    """Answers with one number, plus the first number of the condition; counts its calls."""

    def __init__(self, value):
        super().__init__()
        self.value, self.calls = value, []

    def forward(self, x_t, t, cond=None):
        self.calls.append((len(x_t), cond))
        extra = 0 if cond is None else cond[:, :1, None, None]
        return torch.full_like(x_t, self.value) + extra


def says(value):
    return Denoiser(Says(value), SCHEDULE, "sample")


X, T = torch.zeros(2, 3, 4, 4), torch.tensor([50, 50])
COND = torch.tensor([[0.1, 1.0], [0.3, 1.0]])


def values(x0):
    assert all(bool((picture == picture.flatten()[0]).all()) for picture in x0)
    return pytest.approx([float(picture.flatten()[0]) for picture in x0], abs=1e-6)


def test_classifier_free_guidance_goes_beyond_the_conditional_guess():
    # conditional: 0.5 + (0.1, 0.3); unconditional: 0.5; w = 3
    assert values(Guided(says(0.5), COND, guidance_scale=3)(X, T)) == [0.5 + 3 * 0.1, 0.5 + 3 * 0.3]


def test_autoguidance_goes_beyond_the_weaker_network():
    assert values(Guided(says(0.5), guide=says(0.2), guidance_scale=2)(X, T)) == [0.8, 0.8]


def test_a_guide_may_be_unconditional():
    guided = Guided(says(0.5), COND, says(0.2), guidance_scale=2, guide_conditional=False)
    assert values(guided(X, T)) == [0.2 + 2 * (0.6 - 0.2), 0.2 + 2 * (0.8 - 0.2)]
    assert guided.guide.net.calls[0][1] is None


def test_with_both_the_weaker_network_gets_the_same_condition():
    guided = Guided(says(0.5), COND, says(0.2), guidance_scale=2)
    assert values(guided(X, T)) == [0.9, 1.1]
    assert torch.equal(guided.guide.net.calls[0][1], COND)


@pytest.mark.parametrize("scale, expected", [(0, [0.2, 0.2]), (1, [0.5, 0.5]), (0.5, [0.35, 0.35])])
def test_the_scale_goes_from_the_worse_to_the_better_guess_and_on(scale, expected):
    assert values(Guided(says(0.5), guide=says(0.2), guidance_scale=scale)(X, T)) == expected


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_rescaling_brings_the_deviation_back_to_that_of_the_better_guess(share):
    better, worse = (torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    answers = iter([better, worse] * 2)
    net = nn.Module()
    net.forward = lambda *args: next(answers)
    denoiser = Denoiser(net, make_schedule("linear", 100), "sample")
    guided = Guided(denoiser, guide=denoiser, guidance_scale=3)
    plain = guided(better, torch.zeros(3, dtype=torch.int64))
    rescaled = replace(guided, guidance_rescale=share)(better, torch.zeros(3, dtype=torch.int64))
    for i in range(3):
        full = plain[i] * better[i].std() / plain[i].std()
        torch.testing.assert_close(rescaled[i], share * full + (1 - share) * plain[i])
    with pytest.raises(ValueError, match=r"guidance_rescale must lie in \[0, 1\], not 1.5"):
        replace(guided, guidance_rescale=1.5)


def test_a_scale_of_1_asks_one_network_once():
    for guided in (Guided(says(0.5), COND), Guided(says(0.5), COND, says(0.2)), Guided(says(0.5))):
        guided(X, T)
        assert len(guided.denoiser.net.calls) == 1 and guided.denoiser.net.calls[0][0] == 2
        assert guided.guide is None or not guided.guide.net.calls


def test_conditional_and_unconditional_are_asked_in_one_call():
    guided = Guided(says(0.5), COND, guidance_scale=3)
    guided(X, T)
    ((count, cond),) = guided.denoiser.net.calls
    assert count == 4 and torch.equal(cond, torch.cat([COND, torch.zeros(2, 2)]))


@pytest.mark.parametrize("t, inside", [(19, False), (20, True), (60, True), (61, False)])
def test_outside_the_interval_the_better_guess_is_taken_alone(t, inside):
    guided = Guided(says(0.5), guide=says(0.2), guidance_scale=2, interval=(20, 60))
    assert values(guided(X, torch.tensor([t, t]))) == [0.8 if inside else 0.5] * 2
    assert len(guided.guide.net.calls) == inside


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_it_for_a_denoiser(sampler):
    drawn = sample(Guided(says(0.1), guide=says(0.0), guidance_scale=4), range(2), (3, 4, 4), sampler, 5)
    torch.testing.assert_close(drawn, torch.full((2, 3, 4, 4), 0.4))


class Hears(nn.Module):
    """Answers with the timestep it is asked about."""

    def forward(self, x_t, t, cond=None):
        return t.view(-1, 1, 1, 1) + torch.zeros_like(x_t)


@pytest.mark.parametrize("t, shift, heard", [(50, 0, 50), (50, 7, 57), (95, 7, 99), (3, -7, 0)])
def test_the_network_is_asked_about_a_later_timestep(t, shift, heard):
    hears = Denoiser(Hears(), SCHEDULE, "sample")
    assert values(Guided(hears, time_shift=shift)(X, torch.tensor([t, t]))) == [heard, heard]
    # Both networks are asked about it; the interval counts in the sampler's own timesteps.
    guided = Guided(hears, guide=hears, guidance_scale=2, interval=(t, t), time_shift=shift)
    assert values(guided(X, torch.tensor([t, t]))) == [heard, heard]
    guided = Guided(hears, guide=says(0.0), guidance_scale=2, interval=(t, t), time_shift=shift)
    assert values(guided(X, torch.tensor([t, t]))) == [2 * heard, 2 * heard]


KINDS = {
    "resnet": {"channels": [8, 8, 16], "attention": [4], "stem": 1},
    "unet": {"channels": [8, 16], "attention": [2]},
    "dit": {"dim": 12, "depth": 2},
    "mixer": {"size": 8, "dim": 8, "depth": 2},
}


def learnt(name, seed=0, **options):
    """A network in which every layer adds something."""
    torch.manual_seed(seed)
    net = networks.build(name, **(options or KINDS[name])).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return Denoiser(net, SCHEDULE, "sample")


X8 = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet", "unet"])
@torch.no_grad()
def test_a_skipped_layer_adds_nothing(name):
    whole = learnt(name)
    layers = [n for n, layer in whole.net.named_modules() if isinstance(layer, ResBlock | SelfAttention)]
    assert {type(whole.net.get_submodule(n)) for n in layers} == {ResBlock, SelfAttention}
    before = whole(X8, T)
    for layer in layers:
        weaker = skip_layers(whole, [layer])
        # What a layer adds comes out of its last convolution: one of zeros says the same.
        silent = copy.deepcopy(whole.net)
        last = silent.get_submodule(layer)
        last = last.conv2 if isinstance(last, ResBlock) else last.out
        torch.nn.init.zeros_(last.weight), torch.nn.init.zeros_(last.bias)
        assert torch.equal(weaker(X8, T), replace(whole, net=silent)(X8, T))
        assert not torch.equal(weaker(X8, T), before)
    assert torch.equal(whole(X8, T), before)  # itself it skips nothing


@pytest.mark.parametrize("name", ["dit", "mixer"])
@torch.no_grad()
def test_a_skipped_transformer_block_adds_nothing(name):
    whole, silent = learnt(name), learnt(name)
    weaker = skip_layers(whole, ["blocks.1"])
    torch.nn.init.zeros_(silent.net.blocks[1].modulation.weight)
    torch.nn.init.zeros_(silent.net.blocks[1].modulation.bias)  # gates of zeros
    assert torch.equal(weaker(X8, T), silent(X8, T)) and not torch.equal(weaker(X8, T), whole(X8, T))
    guided = Guided(whole, guide=weaker, guidance_scale=3)(X8, T)
    torch.testing.assert_close(guided, weaker(X8, T) + 3 * (whole(X8, T) - weaker(X8, T)))


SKIPPING = {
    "add": ({"skip": "add"}, ""),
    "concat": ({"skip": "concat"}, ""),
    "indices": ({"skip": "indices", "decoder_depth": 1}, ""),
    "words": ({"skip": "add"}, "net."),
}


@pytest.mark.parametrize("guide_conditional", [True, False])
@pytest.mark.parametrize("kind", SKIPPING)
@torch.no_grad()
def test_what_comes_before_the_first_skipped_layer_is_computed_once(kind, guide_conditional):
    options, prefix = SKIPPING[kind]
    options = {"name": "resnet", "channels": [8, 8, 16], "attention": [4], **options}
    if prefix:
        whole, cond = learnt("text_to_image", words=["a", "b"], length=2, net=options), torch.tensor([[1, 2], [2, 0]])
    else:
        whole, cond = learnt(cond_dim=2, **options), torch.rand(2, 2)
    calls = dict.fromkeys(("encoder.0", "encoder.2", "encoder.5", "decoder.0", "text"), 0)
    for name in calls:

        def count(*_, name=name):
            calls[name] += 1

        if prefix or name != "text":
            whole.net.get_submodule(name if name == "text" else prefix + name).register_forward_hook(count)
    guide = skip_layers(whole, [f"{prefix}encoder.5", f"{prefix}encoder.2"])
    guided = Guided(whole, cond, guide, 3, guide_conditional=guide_conditional)
    found = guided(X8, T)
    shared = 1 if guide_conditional else 2
    assert calls == {"encoder.0": shared, "encoder.2": 2, "encoder.5": 2, "decoder.0": 2, "text": shared * bool(prefix)}
    better, worse = whole(X8, T, cond), guide(X8, T, cond if guide_conditional else None)
    assert torch.equal(found, worse + 3 * (better - worse)) and not torch.equal(better, worse)


@torch.no_grad()
def test_only_a_networks_own_layers_are_shared():
    whole, other = learnt("resnet", channels=[8, 16]), learnt("resnet", channels=[8, 16], seed=1)
    for better, guide in ((whole, skip_layers(other, ["encoder.2"])), (skip_layers(whole, ["encoder.0"]), whole)):
        expected = guide(X8, T) + 2 * (better(X8, T) - guide(X8, T))
        assert torch.equal(Guided(better, guide=guide, guidance_scale=2)(X8, T), expected)


def test_layers_that_cannot_be_skipped_are_an_error():
    for layer in ("encoder.1", "nothing", ""):
        with pytest.raises(ValueError, match=r"cannot do without .*: choose one of (de|en)coder\.\d"):
            skip_layers(learnt("resnet"), [layer])


def test_guidance_away_from_nothing_is_an_error():
    with pytest.raises(ValueError, match="guidance_scale 2 needs a worse guess to walk away from"):
        Guided(says(0.5), guidance_scale=2)


def test_a_part_of_the_pictures_is_guided_alike():
    guided = Guided(says(0.5), COND, says(0.2), guidance_scale=2)
    assert values(guided.part(slice(1, 2))(X[1:], T[1:])) == [1.1]
    alone = Guided(says(0.5), guide=says(0.2), guidance_scale=2)
    assert alone.part(slice(1, 2)) is alone


# What to draw

SHARES = {"red": 0.5, "green": 0.3, "blue": 0.2}


def test_every_picture_can_show_the_same():
    assert torch.equal(conditions(SHARES, range(3), "green"), torch.tensor([[0.0, 1, 0]] * 3))


def test_pictures_show_what_training_pictures_show_as_often():
    rows = conditions(SHARES, range(2000))
    assert rows.shape == (2000, 3) and torch.equal(rows.sum(1), torch.ones(2000))
    for share, count in zip(SHARES.values(), rows.mean(0)):
        assert abs(count - share) < 4 * (share * (1 - share) / 2000) ** 0.5


def test_what_a_picture_shows_depends_on_its_own_seed():
    assert torch.equal(conditions(SHARES, range(5, 40)), conditions(SHARES, range(40))[5:])


def test_an_unknown_condition_is_an_error():
    with pytest.raises(ValueError, match="no condition 'gren': choose one of green, red, blue"):
        conditions(SHARES, range(2), "gren")


def test_a_guide_of_another_schedule_is_an_error():
    other = Denoiser(Says(0.2), make_schedule("linear", 100), "sample")
    longer = Denoiser(Says(0.2), make_schedule("cosine", 200), "sample")
    for guide in (other, longer):
        with pytest.raises(ValueError, match="another noise schedule"):
            Guided(says(0.5), guide=guide, guidance_scale=2)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"interval": (5000, 9000)}, "interval must hold timesteps of 0 … 99, the lowest first, not"),
        ({"interval": (-9, -1)}, "interval must hold timesteps"),
        ({"interval": (60, 40)}, "interval must hold timesteps"),
        ({"time_shift": -5000}, r"time_shift must lie in \[-99, 99\], not -5000"),
        ({"time_shift": 100}, "time_shift must lie in"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be a finite number, not inf"),
    ],
)
def test_options_that_would_guide_nowhere_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        Guided(says(0.5), COND, **{"guidance_scale": 2, **options})


def test_a_guide_of_other_conditions_is_refused_unless_it_gets_none():
    guide = Denoiser(build("resnet", channels=[8], stem=2, embedding_dim=8, cond_dim=3), SCHEDULE, "sample")
    with pytest.raises(ValueError, match="the guide takes other conditions: choose another"):
        Guided(says(0.5), COND, guide, guidance_scale=2)
    Guided(says(0.5), COND, guide, guidance_scale=2, guide_conditional=False)
