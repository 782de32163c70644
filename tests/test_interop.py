"""Other libraries: our denoisers in diffusers' pipelines draw our pictures; the Hub's own mixin saves and loads."""

import pytest
import torch

from diffusion_utils import interop, pipeline, pretrained
from diffusion_utils.data import to_float
from diffusion_utils.guidance import Guided

diffusers = pytest.importorskip("diffusers", reason="the oracle for schedulers is not installed")
SEEDS = range(3, 6)


def generators():
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


@pytest.fixture(params=["sample", "epsilon", "v_prediction", "edm"])
def pipe(request, tiny_denoiser):
    denoiser, card = tiny_denoiser(
        conditions={"cat": 1, "dog": 3}, prediction_type=request.param, size=16, num_train_timesteps=1000
    )
    return pipeline.Pipeline(denoiser, card)


def drawn_by(scheduler, pipe, **how):
    """The loop of every diffusers pipeline."""
    unet = interop.DiffusersModel(pipe.guided(SEEDS, **how), pipe.size)
    scheduler.set_timesteps(10)
    x = torch.cat([torch.randn(1, 3, pipe.size, pipe.size, generator=generator) for generator in generators()])
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    return x


@pytest.mark.parametrize("how", [{}, {"condition": "dog", "guidance_scale": 3.0}])
@pytest.mark.parametrize("sampler, name", [("ddim", "DDIMScheduler"), ("dpm_solver_pp", "DPMSolverMultistepScheduler")])
def test_diffusers_draws_our_pictures_with_our_weights(pipe, how, sampler, name):
    scheduler = getattr(diffusers, name)(**interop.scheduler_config(pipe.denoiser.schedule))
    *_, ours = pipe.trajectory(SEEDS, sampler=sampler, steps=10, **how)
    assert torch.allclose(drawn_by(scheduler, pipe, **how), ours.x_t, atol=1e-4)
    other = drawn_by(scheduler, pipe, condition="cat", guidance_scale=2.0)
    assert not torch.allclose(other, ours.x_t, atol=1e-2)  # the check above can fail


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_where_nothing_is_left_at_the_end_diffusers_draws_all_the_same(tiny_denoiser, name):
    denoiser, card = tiny_denoiser(schedule="flow", size=16, num_train_timesteps=1000)
    pipe = pipeline.Pipeline(denoiser, card)
    *_, ours = pipe.trajectory(SEEDS, sampler="ddim", steps=10)
    theirs = drawn_by(getattr(diffusers, name)(**interop.scheduler_config(denoiser.schedule)), pipe)
    difference = (theirs - ours.x_t).abs()
    assert difference.max() < 1e-4 if name == "DDIMScheduler" else difference.mean() < 0.1


def test_diffusers_own_pipeline_takes_it(pipe):
    scheduler = diffusers.DDIMScheduler(**interop.scheduler_config(pipe.denoiser.schedule))
    unet = interop.DiffusersModel(pipe.guided(SEEDS, "dog"), pipe.size)
    whole = diffusers.DDIMPipeline(unet, scheduler)
    whole.set_progress_bar_config(disable=True)
    found = whole(len(SEEDS), generator=generators(), num_inference_steps=10, output_type="np").images
    expected = to_float(pipe(SEEDS, "dog", sampler="ddim", steps=10)).permute(0, 2, 3, 1) / 2 + 0.5
    assert torch.allclose(torch.from_numpy(found), expected, atol=0.5 / 255 + 1e-4)


def test_a_model_for_diffusers_knows_its_shape_and_answers_one_timestep_for_all(tiny_denoiser):
    denoiser, _ = tiny_denoiser()
    model = interop.DiffusersModel(denoiser, 8)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([40, 40])
    assert (model.config.sample_size, model.dtype, str(model.device)) == (8, torch.float32, "cpu")
    assert torch.equal(model(x, 40, return_dict=False)[0], denoiser(x, t).clamp(-1, 1))
    with pytest.raises(ValueError, match="x_t is torch.float16: leave the model as it is, float32"):
        model(x.half(), 40)
    guided = Guided(denoiser, time_shift=5)
    assert torch.equal(interop.DiffusersModel(guided, 8)(x, t).sample, denoiser(x, t + 5).clamp(-1, 1))


def test_the_hubs_mixin_saves_weights_with_their_card_and_loads_them(tmp_path, tiny_weights):
    weights = tiny_weights(tmp_path / "mine.safetensors", conditions={"cat": 1, "dog": 3}, aspect="3:2")
    interop.HubModel.of(weights).save_pretrained(tmp_path / "shared")
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "shared").iterdir()}
    again, before = interop.HubModel.from_pretrained(tmp_path / "shared").pipeline(), pipeline.load(str(weights))
    assert again.card == before.card and again.aspect == 1.5 and again.drawing == before.drawing
    assert torch.equal(again(SEEDS, "dog", steps=4), before(SEEDS, "dog", steps=4))
    with pytest.raises(ValueError, match="the card lacks size"):
        interop.HubModel({name: entry for name, entry in pretrained.card(weights).items() if name != "size"})
    with pytest.raises(ValueError, match="draw latents: share their folder"):
        interop.HubModel(pretrained.card("stanford-cars-latent"))
