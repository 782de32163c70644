"""What becomes of a seed, a condition or a prompt, and the options: compared with the same done by hand."""

import json
from dataclasses import replace

import pytest
import torch

from diffusion_utils import pipeline, pretrained
from diffusion_utils.data import to_float, to_uint8
from diffusion_utils.guidance import Guided, chosen_by_seed, conditions, skip_layers
from diffusion_utils.networks.super_resolution import low_resolution_cond
from diffusion_utils.networks.text import Tokenizer
from diffusion_utils.pipeline import AS_ADVISED, DEFAULT, Drawing, Pipeline
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import Noise, sample, stream

SHARES = {"red": 0.5, "green": 0.3, "blue": 0.2}
SHAPE = (3, 8, 8)
WORDS = ["a", "blue", "red", "van"]
PROMPTS = ["a red van", "a blue van", "van"]
TEXT = {
    "name": "text_to_image",
    "net": {"name": "resnet", "channels": [8, 8], "attention": [2], "embedding_dim": 8},
    "words": WORDS,
    "length": 3,
    "text_dim": 8,
    "text_depth": 1,
}
LARGER = {"name": "super_resolution", "net": {"name": "resnet", "channels": [8, 8], "embedding_dim": 8}}


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_weights):
    """Weights of networks that draw noise at 8×8."""
    folder = tmp_path_factory.mktemp("weights")

    def new(name, seed, **card):
        return str(tiny_weights(folder / f"{name}.safetensors", seed, **card))

    made = {
        "plain": new("plain", 0),
        "conditional": new("conditional", 1, conditions=SHARES),
        "weak": new("weak", 2, conditions=SHARES),
        "weaker": new("weaker", 3, conditions=SHARES),
        "text": new("text", 4, network=TEXT, prompts=PROMPTS),
        "larger": new("larger", 5, network=LARGER, num_train_timesteps=1000),
        "autoencoder": new("autoencoder", 6, network={"name": "autoencoder", "channels": [8, 8]}),
    }
    # Every option that a card can advise, none of them at its default.
    advice = {
        "sampler": "ddpm",
        "steps": 7,
        "guidance_scale": 3.0,
        "guide": made["weak"],
        "skip_layers": None,
        "interval": [10, 70],
        "time_shift": 3,
        "guide_conditional": False,
    }
    return made | {"advised": new("advised", 1, conditions=SHARES, drawing=advice)}


def guided(files, name, seeds=range(5), condition=None, prompt=None, **options):
    return pipeline.load(files[name]).guided(seeds, condition, prompt, **options)


# Which denoiser


def test_plain_weights_give_their_denoiser(files):
    assert isinstance(guided(files, "plain"), Denoiser)


def test_conditional_weights_draw_something_of_their_own_for_every_seed(files):
    denoiser = guided(files, "conditional", range(3, 8))
    assert torch.equal(denoiser.cond, conditions(SHARES, range(3, 8)))
    assert denoiser.guidance_scale == 1 and denoiser.guide is None


def test_a_condition_is_for_all_pictures_and_none_is_unconditional(files):
    assert torch.equal(guided(files, "conditional", condition="blue").cond, torch.tensor([[0.0, 0, 1]] * 5))
    assert isinstance(guided(files, "conditional", condition="none"), Denoiser)
    assert isinstance(guided(files, "plain", condition="none"), Denoiser)


def test_guidance_is_that_of_the_options(files):
    denoiser = guided(files, "conditional", guidance_scale=2, guide=files["weak"], interval=(20, 60))
    assert (denoiser.guidance_scale, denoiser.interval) == (2, (20, 60))
    expected = pretrained.load(files["weak"]).net.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in denoiser.guide.net.state_dict().items())


@torch.no_grad()
def test_layers_are_skipped_in_the_guide(files):
    denoiser = guided(files, "conditional", guidance_scale=2, skip_layers=("encoder.0",))
    x, t = torch.randn(5, *SHAPE), torch.full((5,), 60)
    worse = skip_layers(denoiser.denoiser, ["encoder.0"])(x, t, denoiser.cond)
    better = denoiser.denoiser(x, t, denoiser.cond)
    assert not torch.equal(better, worse)
    torch.testing.assert_close(denoiser(x, t), worse + 2 * (better - worse))


def test_a_time_shift_alone_needs_no_condition(files):
    denoiser = guided(files, "plain", time_shift=7)
    assert denoiser.time_shift == 7 and denoiser.cond is None and denoiser.guidance_scale == 1


def test_a_device_is_where_it_draws(files):
    pipe = replace(pipeline.load(files["conditional"]), device="meta")
    assert pipe.guided(range(2)).cond.device.type == "meta"


# Half precision


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"guidance_scale": 2, "skip_layers": ("encoder.0",)}, {"guidance_scale": 2, "guide": "weak"}]
)
def test_in_half_precision_all_networks_compute_and_pictures_stay_float32(files, options):
    options = {key: files.get(value, value) if key == "guide" else value for key, value in options.items()}
    seen = []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda net, given, out: seen.append((net, out)))
    pipe = pipeline.load(files["conditional"], mixed_precision="bf16")
    denoiser = pipe.guided(range(2), **options)
    x0 = denoiser(torch.randn(2, *SHAPE), torch.full((2,), 60))
    hook.remove()
    computed = {out.dtype for net, out in seen if isinstance(net, torch.nn.Conv2d)}
    assert computed == {torch.bfloat16} and x0.dtype == torch.float32
    exact = pipeline.load(files["conditional"])(range(2), **options)
    drawn = pipe(range(2), **options)
    assert not torch.equal(drawn, exact) and (drawn.float() - exact.float()).abs().mean() < 3


@pytest.mark.parametrize("native, dtype", [(True, torch.bfloat16), (False, None)])
def test_auto_takes_half_precision_where_the_device_gains_by_it(files, monkeypatch, native, dtype):
    monkeypatch.setattr(pipeline.arithmetic, "bf16_is_native", lambda device: native)
    assert pipeline.load(files["plain"], mixed_precision="auto").denoiser.dtype == dtype
    assert pipeline.load(files["plain"]).denoiser.dtype is None


def test_a_precision_that_there_is_not_is_an_error(files):
    with pytest.raises(ValueError, match="mixed_precision must be one of auto, no, bf16, fp16, not 'half'"):
        pipeline.load(files["plain"], mixed_precision="half")


# The card's advice, and what takes its place


def test_without_advice_there_are_defaults(files, tmp_path, tiny_weights):
    assert pipeline.load(files["plain"]).drawing == DEFAULT == AS_ADVISED.over(DEFAULT)
    path = tiny_weights(tmp_path / "a.safetensors", drawing={"steps": 3})
    assert json.loads(path.with_suffix(".json").read_text())["drawing"] == {"steps": 3}
    expected = Drawing("dpm_solver_pp", 3, 1.0, time_shift=0, guide_conditional=True)
    assert pipeline.load(path).drawing == expected


def test_the_card_advises_and_the_options_decide(files):
    pipe = pipeline.load(files["advised"])
    assert pipe.drawing == Drawing(
        "ddpm", 7, 3.0, files["weak"], interval=(10, 70), time_shift=3, guide_conditional=False
    )
    denoiser = pipe.guided(range(5))
    assert denoiser.guidance_scale == 3 and denoiser.interval == (10, 70) and denoiser.guide is not None
    assert denoiser.time_shift == 3 and not denoiser.guide_conditional
    own = Drawing("ddim", 9, 1.5, "none", guide_conditional=True)
    expected = Drawing("ddim", 9, 1.5, "none", interval=(10, 70), time_shift=3, guide_conditional=True)
    assert own.over(pipe.drawing) == expected
    assert pipe.guided(range(2), guide="none", guidance_scale=1.5).guide is None


def test_a_card_that_advises_what_does_not_exist_is_an_error(tmp_path, tiny_weights):
    path = tiny_weights(tmp_path / "a.safetensors", drawing={"steps": 3, "guide_described": True})
    with pytest.raises(ValueError, match="drawing advice holds guide_described, which is no option"):
        pipeline.load(path)


def test_another_worse_guess_takes_the_place_of_the_advised_one():
    def chosen(advice, **options):
        how = Drawing(**options).over(Drawing(**advice))
        return how.guide, how.skip_layers

    skip, guide = {"skip_layers": ("encoder.0",)}, {"guide": "weak"}
    assert chosen(skip) == (None, ("encoder.0",))
    assert chosen(skip, guide="other") == ("other", None)
    assert chosen(skip, skip_layers=()) == (None, ()) and chosen(skip, guide="none") == ("none", None)
    assert chosen(guide) == ("weak", None)
    assert chosen(guide, skip_layers=("decoder.1",)) == (None, ("decoder.1",))
    assert chosen(guide, skip_layers=()) == (None, ())
    assert chosen(guide, guide="other", skip_layers=()) == ("other", ())
    with pytest.raises(ValueError, match="guide and skip_layers both make the worse guess"):
        chosen({}, guide="none", skip_layers=("decoder.1",))


@pytest.fixture(scope="module")
def by_hand(files):
    """Function: the pictures of the weights "advised" for given options, written out with the sampler itself."""
    denoiser, seeds = pipeline.load(files["advised"]).denoiser, range(4)

    def draw(
        sampler="ddpm", steps=7, scale=3.0, guide="weak", skipped=(), interval=(10, 70), shift=3, both=False, **walk
    ):
        worse = pipeline.load(files[guide]).denoiser if guide else skip_layers(denoiser, skipped) if skipped else None
        denoise = Guided(denoiser, conditions(SHARES, seeds), worse, scale, interval, shift, both)
        return to_uint8(sample(denoise, seeds, SHAPE, sampler, steps, **walk))

    return draw


CHANGES = {  # options, and what they mean to the sampler and to Guided
    "sampler": ({"sampler": "ddim"}, {"sampler": "ddim"}),
    "steps": ({"steps": 4}, {"steps": 4}),
    "no guidance": ({"guidance_scale": 1}, {"scale": 1}),
    "classifier-free": ({"guide": "none"}, {"guide": None}),
    "another guide": ({"guide": "weaker"}, {"guide": "weaker"}),
    "layers": ({"skip_layers": ("encoder.0",)}, {"guide": None, "skipped": ("encoder.0",)}),
    "no layers": ({"skip_layers": ()}, {"guide": None}),
    "interval": ({"interval": (0, 99)}, {"interval": (0, 99)}),
    "time shift": ({"time_shift": 0}, {"shift": 0}),
    "conditional guide": ({"guide_conditional": True}, {"both": True}),
    "eta": ({"sampler": "ddim", "eta": 0.5}, {"sampler": "ddim", "eta": 0.5}),
    "spacing": ({"timestep_spacing": "leading"}, {"timestep_spacing": "leading"}),
    "clipping": ({"clip_sample": False}, {"clip_sample": False}),
}


@pytest.mark.parametrize("options, meaning", CHANGES.values(), ids=CHANGES)
def test_every_option_can_be_given_in_place_of_the_advice(files, by_hand, options, meaning):
    options = options | ({"guide": files["weaker"]} if options.get("guide") == "weaker" else {})
    pipe = pipeline.load(files["advised"])
    advised, changed = pipe(range(4)), pipe(range(4), **options)
    assert torch.equal(advised, by_hand()) and torch.equal(changed, by_hand(**meaning))
    assert not torch.equal(changed, advised)


# Pictures


def test_pictures_are_drawn_in_batches_each_with_its_own_condition(files, monkeypatch):
    pipe = pipeline.load(files["conditional"])
    how = {"guidance_scale": 2, "sampler": "ddim", "steps": 3}
    whole = pipe(range(5), **how)
    monkeypatch.setattr(pipeline, "BATCH", 2)
    parts = pipe(range(5), **how)
    assert whole.dtype == torch.uint8 and whole.shape == (5, *SHAPE)
    assert (whole.int() - parts.int()).abs().max() <= 1  # another batch size rounds otherwise
    alone = sample(pipe.guided(range(5), **how).part(slice(3, 4)), [3], SHAPE, "ddim", 3)
    assert ((alone[0].clamp(-1, 1) + 1) * 127.5 - whole[3]).abs().max() < 2


@pytest.mark.parametrize(
    "name, given",
    [
        ("plain", {}),
        ("conditional", {}),
        ("conditional", {"condition": "green", "guidance_scale": 2}),
        ("advised", {"steps": 3}),
        ("text", {"guidance_scale": 2}),
        ("text", {"prompt": "a blue van"}),
    ],
)
def test_a_picture_does_not_depend_on_the_batch_it_is_drawn_in(files, name, given):
    pipe = pipeline.load(files[name])
    together = pipe([7, 4, 9], **given)
    for i, seed in enumerate((7, 4, 9)):
        assert (pipe([seed], **given)[0].int() - together[i].int()).abs().max() <= 1
    assert (together[0].int() - together[1].int()).abs().max() > 20  # so that a difference of 1 says something


def test_the_trajectory_ends_in_the_pictures(files):
    for name, given in (("plain", {}), ("advised", {"condition": "red"}), ("text", {"prompt": "red"})):
        pipe = pipeline.load(files[name])
        steps = list(pipe.trajectory([3, 1], steps=4, **given))
        assert [step.t for step in steps] == [99, 74, 49, 24, -1]
        assert torch.equal(steps[0].x_t, Noise([3, 1], SHAPE)())
        assert torch.equal(to_uint8(steps[-1].x_t), pipe([3, 1], steps=4, **given))


def test_a_denoiser_of_ones_own_can_be_drawn_with(tiny_denoiser):
    denoiser, card = tiny_denoiser(8, size=16)
    pipe = Pipeline(denoiser, card)
    assert torch.equal(pipe(range(2), steps=3), to_uint8(sample(denoiser, range(2), (3, 16, 16), steps=3)))


# Prompts


def test_one_prompt_for_all_is_one_each(files):
    pipe = pipeline.load(files["text"])
    drawn = pipe(range(3), prompt="a red van", steps=3)
    cond = Tokenizer(WORDS, 3).encode(["a red van"] * 3)
    assert torch.equal(drawn, to_uint8(sample(Guided(pipe.denoiser, cond), range(3), SHAPE, steps=3)))
    for same in (["a red van"] * 3, ["A red van!"], ("a red van",)):
        assert torch.equal(pipe(range(3), prompt=same, steps=3), drawn)
    # Other words draw other pictures, each its own.
    other = pipe(range(3), prompt=["a red van", "blue", "a red van"], steps=3)
    assert torch.equal(other[[0, 2]], drawn[[0, 2]]) and not torch.equal(other[1], drawn[1])


def test_without_a_prompt_each_picture_has_one_of_the_cards_by_its_seed(files):
    expected = [PROMPTS[i] for i in chosen_by_seed([1.0] * 3, range(6)).tolist()]
    assert len(set(expected)) > 1
    pipe = pipeline.load(files["text"])
    assert torch.equal(pipe(range(6), steps=2), pipe(range(6), prompt=expected, steps=2))


def test_an_empty_prompt_and_the_condition_none_are_unconditional(files):
    pipe = pipeline.load(files["text"])
    assert pipe.guided(range(2), condition="none") is pipe.denoiser
    assert torch.equal(pipe(range(2), prompt="", steps=2), pipe(range(2), condition="none", steps=2))
    assert not torch.equal(pipe(range(2), prompt="red", steps=2), pipe(range(2), condition="none", steps=2))


def test_the_condition_none_draws_without_the_advised_classifier_free_guidance(tmp_path, tiny_weights):
    path = tiny_weights(tmp_path / "a.safetensors", conditions=SHARES, drawing={"guidance_scale": 4.0, "steps": 3})
    pipe = pipeline.load(path)
    expected = to_uint8(sample(pipe.denoiser, range(2), SHAPE, steps=3))
    assert torch.equal(pipe(range(2), condition="none"), expected)
    assert not torch.equal(pipe(range(2)), expected)


def test_the_condition_none_keeps_the_advised_worse_guess(files):
    pipe, weak = pipeline.load(files["advised"]), pretrained.load(files["weak"])
    unconditional = Guided(pipe.denoiser, None, weak, 3.0, (10, 70), 3)
    expected = to_uint8(sample(unconditional, range(2), SHAPE, "ddpm", 7))
    assert torch.equal(pipe(range(2), condition="none"), expected)


def test_without_the_advised_worse_guess_the_condition_none_is_not_guided(tmp_path, tiny_weights):
    advice = {"guidance_scale": 3.0, "steps": 3, "skip_layers": ["encoder.0"]}
    pipe = pipeline.load(tiny_weights(tmp_path / "a.safetensors", conditions=SHARES, drawing=advice))
    expected = to_uint8(sample(pipe.denoiser, range(2), SHAPE, steps=3))
    for change in ({"skip_layers": ()}, {"guide": "none"}):
        assert torch.equal(pipe(range(2), condition="none", **change), expected)


def test_an_advised_eta_goes_with_the_advised_sampler(tmp_path, tiny_weights):
    advice = {"sampler": "ddim", "eta": 0.5, "steps": 3}
    pipe = pipeline.load(tiny_weights(tmp_path / "a.safetensors", drawing=advice))
    assert torch.equal(pipe(range(2)), to_uint8(sample(pipe.denoiser, range(2), SHAPE, "ddim", 3, eta=0.5)))
    assert torch.equal(pipe(range(2), sampler="ddpm"), to_uint8(sample(pipe.denoiser, range(2), SHAPE, "ddpm", 3)))


# What cannot be drawn

ERRORS = {
    "condition, no network for it": ("plain", {"condition": "red"}, "takes no condition: leave it out"),
    "unknown condition": ("conditional", {"condition": "blau"}, "no condition 'blau': choose one of blue, "),
    "prompt for plain weights": ("plain", {"prompt": "red"}, "plain.safetensors takes no prompt: leave it out"),
    "prompt for classes": ("conditional", {"prompt": "red"}, "conditional.safetensors takes no prompt: leave it out"),
    "condition for text": ("text", {"condition": "red"}, "text.safetensors takes no condition: say it as a prompt"),
    "a number": ("conditional", {"condition": 7}, "condition must be a text, not 7"),
    "one condition each": ("conditional", {"condition": ["red", "blue", "red"]}, "condition must be a text, not"),
    "both": ("text", {"condition": "none", "prompt": "red"}, "give a condition or a prompt, not both"),
    "too few prompts": ("text", {"prompt": ["red", "blue"]}, "2 prompts for 3 pictures: give one for all, or one each"),
    "no prompts": ("text", {"prompt": []}, "0 prompts for 3 pictures"),
    "nothing to go away from": ("plain", {"guidance_scale": 2}, "needs a worse guess to walk away from"),
    "nor unconditionally": ("conditional", {"guidance_scale": 2, "condition": "none"}, "needs a worse guess"),
    "no such layer": ("plain", {"guidance_scale": 2, "skip_layers": ("stem",)}, "cannot do without 'stem'"),
    "two worse guesses": (
        "conditional",
        {"guide": "other", "skip_layers": ("encoder.0",)},
        "guide and skip_layers both make the worse guess: choose one of them",
    ),
    "reversed interval": ("plain", {"interval": (60, 20)}, r"lowest and the highest timestep.* not \(60, 20\)"),
    "half an interval": ("plain", {"interval": (60,)}, r"lowest and the highest timestep.* not \(60,\)"),
    "an interval beyond": ("conditional", {"guidance_scale": 2, "interval": (500, 900)}, "interval 500 900 holds none"),
    "an interval before": ("conditional", {"guidance_scale": 2, "interval": (-9, -1)}, "interval -9 -1 holds none"),
    "an interval too long": (
        "conditional",
        {"guidance_scale": 2, "interval": (0, 100)},
        r"interval must hold .* 0 … 99",
    ),
    "scale 1 is no guidance": (
        "conditional",
        {"guidance_scale": 1, "interval": (20, 60)},
        "interval belongs to guidance: give guidance_scale",
    ),
    "between two steps": (
        "conditional",
        {"guidance_scale": 2, "interval": (50, 60), "steps": 3},
        "interval 50 60 holds none of the timesteps that are visited, 99 … 32: nothing would be guided",
    ),
    "no numbers": ("plain", {"interval": "ab"}, "lowest and the highest timestep.* not ab"),
    "interval, no guidance": (
        "conditional",
        {"interval": (20, 60)},
        "interval belongs to guidance: give guidance_scale",
    ),
    "guide, no guidance": ("plain", {"guide": "other"}, "guide belongs to guidance: give guidance_scale"),
    "layers, no guidance": ("plain", {"skip_layers": ("encoder.0",)}, "skip_layers belongs to guidance"),
    "interval, condition none": ("conditional", {"condition": "none", "interval": (2, 60)}, "belongs to guidance"),
    "guide_conditional": ("conditional", {"guide_conditional": True}, "guide_conditional belongs to guidance"),
    "guide_conditional, no guide": (
        "conditional",
        {"guidance_scale": 2, "guide_conditional": False},
        "guide_conditional is about another network's guess: give guide or skip_layers",
    ),
    "empty guide": ("conditional", {"guide": "", "guidance_scale": 2}, "no weights named ''"),
    "earlier than all": ("plain", {"time_shift": -100}, r"time_shift must lie in \[-99, 99\], not -100"),
    "later than all": ("plain", {"time_shift": 5000}, r"time_shift must lie in \[-99, 99\], not 5000"),
    "no scale": ("conditional", {"guidance_scale": float("nan")}, "guidance_scale must be a finite number, not nan"),
    "no number of steps": ("plain", {"steps": "20"}, "steps must be a whole number, not '20'"),
    "a number as prompt": ("text", {"prompt": 3}, "prompt must be a text or a list, each a text, not 3"),
    "one layer's name": ("plain", {"skip_layers": "encoder.0"}, r"a list of names, \['encoder.0'\], not one name"),
    "eta": ("plain", {"sampler": "ddpm", "eta": 0.5}, "eta belongs to the sampler ddim, not to ddpm"),
    "eta, by the card": ("plain", {"eta": 0.5}, "eta belongs to the sampler ddim, not to dpm_solver_pp"),
    "sampler": ("plain", {"sampler": "euler"}, "unknown sampler 'euler'"),
    "steps": ("plain", {"steps": 101}, r"steps must be a whole number in \[1, 100\], not 101"),
    "no seeds": ("plain", {"seeds": []}, "give at least one seed"),
    "an autoencoder": ("autoencoder", {}, "cannot draw from nothing: an autoencoder, or a network that enlarges"),
    "super-resolution": ("larger", {}, "cannot draw from nothing: an autoencoder, or a network that enlarges"),
}


@pytest.mark.parametrize("name, given, text", ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_drawn_is_an_error_in_one_sentence(files, name, given, text):
    pipe, given = pipeline.load(files[name]), {"seeds": range(3), **given}
    for draw in (pipe, lambda **given: list(pipe.trajectory(**given))):
        with pytest.raises((ValueError, FileNotFoundError), match=text) as error:
            draw(**given)
        assert "\n" not in str(error.value)


def test_a_guide_that_does_not_exist_is_an_error(files):
    with pytest.raises(FileNotFoundError, match="no weights named 'nobody'"):
        guided(files, "conditional", guide="nobody", guidance_scale=2)


@pytest.mark.parametrize(
    "card, text",
    [
        ({"conditions": {"red": 0.5, "green": 0.3, "grey": 0.2}}, "takes other conditions"),
        ({"conditions": {"red": 0.5, "green": 0.5}}, "takes other conditions"),
        ({}, "takes other conditions"),
        ({"conditions": SHARES, "size": 16}, "draws no pictures of 8×8"),
        ({"network": {"name": "autoencoder", "channels": [8, 8]}}, "draws no pictures of 8×8"),
    ],
)
def test_a_guide_must_draw_what_the_weights_draw(files, tmp_path, tiny_weights, card, text):
    guide = str(tiny_weights(tmp_path / "other.safetensors", **card))
    with pytest.raises(ValueError, match=text):
        guided(files, "conditional", guide=guide, guidance_scale=2)
    if "conditions" in text:  # which it need not hear
        guided(files, "conditional", guide=guide, guidance_scale=2, guide_conditional=False)


def test_advice_takes_no_more_steps_than_there_are_timesteps(tmp_path, tiny_weights):
    for card in ({}, {"drawing": {"steps": 50}}):
        pipe = pipeline.load(tiny_weights(tmp_path / "a.safetensors", num_train_timesteps=10, **card))
        assert pipe.settled().steps == 10
        assert torch.equal(pipe([0]), to_uint8(sample(pipe.denoiser, [0], SHAPE, steps=10)))
        with pytest.raises(ValueError, match=r"steps must be a whole number in \[1, 10\], not 20"):
            pipe([0], steps=20)
    larger = {"name": "super_resolution", "net": LARGER["net"], "max_noise": 5}
    pipe = pipeline.load(tiny_weights(tmp_path / "b.safetensors", network=larger, num_train_timesteps=10))
    assert pipe.enlarge(torch.zeros(1, 3, 4, 4), [0], noise_level=3).shape == (1, 3, 8, 8)


def test_an_option_that_does_not_exist_is_an_error(files):
    with pytest.raises(ValueError, match="no option 'spacing': choose one of timestep_spacing"):
        pipeline.load(files["plain"])(range(2), spacing="leading")


# Latents


@torch.no_grad()
def test_latents_are_drawn_and_decoded(tmp_path, tiny_weights):
    def save(name, network, **card):
        return str(tiny_weights(tmp_path / name, network=network, size=16, **card))

    encoder = save("vae.safetensors", {"name": "autoencoder", "channels": [8, 8], "latent_channels": 2})
    tiny = {"name": "resnet", "channels": [8, 8], "picture_channels": 2, "embedding_dim": 8}
    weights = save("latent.safetensors", tiny, autoencoder=encoder)
    pipe, how = pipeline.load(weights), {"sampler": "ddim", "steps": 4}
    denoiser = pipe.denoiser
    drawn = pipe(range(3), **how)
    latents = sample(denoiser, range(3), (2, 4, 4), "ddim", 4, clip_sample=False)
    assert drawn.shape == (3, 3, 16, 16) and latents.abs().max() > 1
    assert torch.equal(drawn, to_uint8(denoiser.autoencoder.from_latents(latents)))
    assert torch.equal([*pipe.trajectory(range(3), **how)][-1].x_t, latents)
    assert not torch.equal(pipe(range(3), clip_sample=True, **how), drawn)
    with pytest.raises(ValueError, match="guide belongs to guidance: give guidance_scale"):  # it would change nothing
        pipe(range(3), guide=weights, guidance_scale=1, **how)
    other = save("other.safetensors", {"name": "autoencoder", "channels": [8, 16], "latent_channels": 2})
    for guide in (save("pixels.safetensors", tiny), save("others.safetensors", tiny, autoencoder=other)):
        with pytest.raises(ValueError, match="pixels, or another autoencoder.s latents"):
            pipe(range(3), guide=guide, guidance_scale=2)
    with pytest.raises(ValueError, match="is no autoencoder"):
        pretrained.load(save("odd.safetensors", tiny, autoencoder=weights))


# Larger pictures


def enlarged_by_hand(denoiser, small, seeds, noise_level, sampler="dpm_solver_pp", steps=20):
    """The small pictures with noise of a stream of its own, each the condition of one twice as large."""
    noise = Noise([stream(seed, 2) for seed in seeds], small.shape[1:])()
    cond = low_resolution_cond(small, denoiser.schedule, torch.full((len(small),), noise_level), noise)
    shape = (3, 2 * small.shape[2], 2 * small.shape[3])
    return to_uint8(sample(Guided(denoiser, cond), seeds, shape, sampler, steps))


def test_pictures_are_enlarged(files, monkeypatch):
    pipe = pipeline.load(files["larger"])
    small = torch.rand(3, 3, 4, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    drawn = pipe.enlarge(small, [5, 6, 7], steps=3)
    assert drawn.dtype == torch.uint8 and drawn.shape == (3, 3, 8, 16)
    assert torch.equal(drawn, enlarged_by_hand(pipe.denoiser, small, [5, 6, 7], 100, steps=3))
    for options in ({"noise_level": 400}, {"sampler": "ddim"}, {"steps": 2}):
        other = pipe.enlarge(small, [5, 6, 7], **({"steps": 3} | options))
        expected = enlarged_by_hand(pipe.denoiser, small, [5, 6, 7], **({"noise_level": 100, "steps": 3} | options))
        assert torch.equal(other, expected) and not torch.equal(other, drawn)
    of_uint8 = pipe.enlarge(to_uint8(small), [5, 6, 7], steps=3)
    assert torch.equal(of_uint8, pipe.enlarge(to_float(to_uint8(small)), [5, 6, 7], steps=3))
    monkeypatch.setattr(pipeline, "BATCH", 2)
    assert (pipe.enlarge(small, [5, 6, 7], steps=3).int() - drawn.int()).abs().max() <= 1


def test_what_cannot_be_enlarged_is_an_error(files):
    pipe = pipeline.load(files["larger"])
    for noise_level in ("10", 10.5):
        with pytest.raises(ValueError, match="noise_level must be a whole number"):
            pipe.check_enlarging(noise_level)
    with pytest.raises(ValueError, match="expected pictures of shape"):
        pipe.enlarge(torch.zeros(1, 1, 4, 4), [0])
    for noise_level in (-1, 500):
        for refuse in (pipe.check_enlarging, lambda level: pipe.enlarge(torch.zeros(1, 3, 4, 4), [0], level)):
            with pytest.raises(ValueError, match=rf"noise_level must lie in \[0, 499\], not {noise_level}"):
                refuse(noise_level)
    with pytest.raises(ValueError, match="2 seeds for 1 pictures: give one each"):
        pipe.enlarge(torch.zeros(1, 3, 4, 4), [0, 1])
    for option in ({"guidance_scale": 2}, {"time_shift": 5}):  # not ignored
        with pytest.raises(ValueError, match=f"enlarging takes sampler, .*, not {[*option][0]}"):
            pipe.enlarge(torch.zeros(1, 3, 4, 4), [0], **option)
    with pytest.raises(ValueError, match="plain.safetensors cannot enlarge pictures: train some with --condition low"):
        pipeline.load(files["plain"]).enlarge(torch.zeros(1, 3, 4, 4), [0])


# The weights that ship


def shipped_by_hand(name, seeds, steps):
    """What the model card asks for, put together out of sampler, guidance and autoencoder."""
    card = json.loads((pretrained.FOLDER / f"{name}.json").read_text())
    denoiser, advice = pipeline.load(name).denoiser, card.get("drawing", {})
    cond = None
    if "conditions" in card:
        cond = conditions(card["conditions"], seeds)
    elif "prompts" in card:
        prompts = [card["prompts"][i] for i in chosen_by_seed([1.0] * len(card["prompts"]), seeds).tolist()]
        cond = Tokenizer(card["network"]["words"], card["network"]["length"]).encode(prompts)
    if cond is not None:
        guide = skip_layers(denoiser, advice["skip_layers"]) if advice.get("skip_layers") else None
        more = {key: advice[key] for key in ("time_shift", "guide_conditional") if key in advice}
        denoiser = Guided(denoiser, cond, guide, advice.get("guidance_scale", 1), **more)
    sampler = advice.get("sampler", "dpm_solver_pp")
    if "autoencoder" not in card:
        return to_uint8(sample(denoiser, seeds, (3, card["size"], card["size"]), sampler, steps))
    decoder = pipeline.load(card["autoencoder"]).denoiser.net
    shape = decoder.latent_shape(card["size"], card["size"])
    return to_uint8(decoder.from_latents(sample(denoiser, seeds, shape, sampler, steps, clip_sample=False)))


@pytest.mark.parametrize("name", pretrained.names())
def test_shipped_weights_draw_as_their_card_says_or_say_why_not(name):
    pipe = pipeline.load(name)
    kind = pipe.card["network"]["name"]
    if kind in ("autoencoder", "super_resolution"):
        sentence = f"{name} cannot draw from nothing: an autoencoder, or a network that enlarges"
        with pytest.raises(ValueError) as error:
            pipe(seeds=range(2), steps=2)
        assert str(error.value) == sentence
    if kind == "super_resolution":
        small = pipeline.load("toy-cars-resnet")(range(2), steps=2)
        pictures = pipe.enlarge(small, range(2), steps=2)
        assert torch.equal(pictures, enlarged_by_hand(pipe.denoiser, to_float(small), range(2), 100, steps=2))
    elif kind != "autoencoder":
        pictures = pipe(seeds=range(2), steps=2)
        assert torch.equal(pictures, shipped_by_hand(name, range(2), 2))
        advice = {key: tuple(v) if isinstance(v, list) else v for key, v in pipe.card.get("drawing", {}).items()}
        assert {key: getattr(pipe.drawing, key) for key in advice} == advice
    if kind != "autoencoder":
        assert pictures.dtype == torch.uint8 and pictures.shape == (2, 3, pipe.card["size"], pipe.card["size"])
        assert pictures.float().std() > 20 and not torch.equal(pictures[0], pictures[1])


def test_pictures_do_not_depend_on_how_weights_lie_in_memory():
    pipe = pipeline.load("stanford-cars-latent")
    pictures = pipe(range(2), steps=2)
    for net in (pipe.denoiser.net, pipe.denoiser.autoencoder):
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in net.parameters() if p.dim() == 4)
    plain = replace(pipe, denoiser=pretrained.load("stanford-cars-latent"))(range(2), steps=2)
    torch.testing.assert_close(pictures, plain, atol=1, rtol=0)
    assert pictures.is_contiguous()


@pytest.mark.parametrize("seeds", [3, [-1], range(2**32 - 2, 2**32 + 2), [1.5], []])
def test_seeds_are_looked_at_before_anything_is_drawn(seeds, tiny_denoiser, monkeypatch):
    pipe = pipeline.Pipeline(*tiny_denoiser())
    monkeypatch.setattr(pipeline, "sample", None)  # would be called
    for draw in (pipe, pipe.guided, lambda seeds: list(pipe.trajectory(seeds))):
        with pytest.raises(ValueError, match="seed"):
            draw(seeds)


@pytest.mark.parametrize(
    "images, text",
    [
        (torch.zeros(2, 3, 4, 4).numpy(), "expected a tensor of pictures, not ndarray"),
        (torch.zeros(3, 4, 4), r"pass image\[None\]"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), "float pictures in .* or uint8, not torch.int64"),
        (torch.full((2, 3, 4, 4), 200.0), "not in \\[0, 200\\]"),
        (torch.full((2, 3, 4, 4), float("nan")), "not finite"),
        (torch.zeros(3, 3, 4, 4), "2 seeds for 3 pictures"),
    ],
)
def test_what_is_no_batch_of_pictures_is_not_enlarged(files, images, text):
    with pytest.raises((ValueError, TypeError), match=text):
        pipeline.load(files["larger"]).enlarge(images, range(2))


def test_words_that_were_not_learnt_are_said(files):
    with pytest.warns(UserWarning, match="'red zebra': Not learnt, so left out: zebra."):
        pipeline.load(files["text"])(range(2), prompt="red zebra", steps=1)
