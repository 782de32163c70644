"""What nbval does not look at: the form of the notebooks, and that the code they teach is the
package's code."""

import ast
import contextlib
import io
import math
import os
import re
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from diffusion_utils import evaluation, guidance, ideal, prediction, sampling, schedule
from diffusion_utils.evaluation import metrics
from diffusion_utils.networks import autoencoder, blocks, build, dit, lora, mixer, super_resolution, text
from diffusion_utils.training import optimizers

sys.path.insert(0, str(Path(__file__).parents[1] / "site"))
from widget_cells import needed

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def tags(cell):
    return cell.metadata.get("tags", [])


def hidden(cell):
    """Its code is folded away, as set-up and the drawing of figures are."""
    return cell.metadata.get("jupyter", {}).get("source_hidden", False)


def taught(stem: str) -> dict:
    """Every function and class that a notebook defines at the top of a cell, ready to call."""
    tree = ast.parse("\n".join(cell.source for cell in cells(FOLDER / f"{stem}.ipynb")))
    keep = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    space = {"torch": torch, "math": math, "nn": nn, "F": F, "re": re, "blocks": blocks, "sampling": sampling}
    space |= {"Schedule": schedule.Schedule, "parametrize": parametrize}
    space["pictures"] = torch.zeros(1, 3, 8, 8)  # a function of notebook 8 takes them where it is given none
    exec(compile(ast.Module(keep, []), stem, "exec"), space)  # our own notebooks' code
    return space


def test_the_series_is_complete():
    assert [path.stem for path in NOTEBOOKS] == [
        "00_diffusion_in_an_hour",
        "01_forward_noising",
        "02_resnet_encoder_decoder",
        "03_training_on_stanford_cars",
        "04_sampling",
        "05_how_small_can_it_be",
        "06_text_to_image",
        "07_latent_diffusion",
        "08_why_new_cars",
        "09_flow_matching",
        "10_any_network",
        "11_your_own_pictures",
    ]


@EVERY
def test_outputs_are_stored_in_order_and_without_errors(path):
    code = cells(path)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [out for cell in code for out in cell.outputs if out.output_type == "error"]
    assert sum("image/png" in out.get("data", {}) for cell in code for out in cell.outputs) >= 4
    assert not [
        out.text for cell in code for out in cell.outputs if out.output_type == "stream" and "Warning" in out.text
    ]


@EVERY
def test_names_no_machine(path):
    text = path.read_text()
    assert not re.findall(r"/(?:home|root|work|tmp|Users)/\w+", text)
    assert str(Path.home()) not in text


@EVERY
def test_github_can_show_it(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    widgets = notebook.metadata.get("widgets")
    assert widgets is None or all("state" in entry for entry in widgets.values())
    assert path.stat().st_size < 5_000_000


@EVERY
def test_cells_are_short_and_explained(path):
    code = [cell.source for cell in cells(path) if not hidden(cell)]
    assert max(len([line for line in source.splitlines() if line.strip()]) for source in code) <= 20
    words = sum(len(cell.source.split()) for cell in cells(path, "markdown"))
    lines = sum(len([line for line in source.splitlines() if line.strip()]) for source in code)
    assert words >= 6 * lines


@EVERY
def test_an_unchecked_cell_is_followed_by_a_check(path):
    code = cells(path)
    assert not [cell for cell in code if "NBVAL" in cell.source]  # tags say it, which readers do not see
    unchecked = ["nbval-ignore-output" in tags(cell) for cell in code]
    assert {tag for cell in code for tag in tags(cell)} <= {"nbval-ignore-output"}
    for i, cell in enumerate(code):
        if unchecked[i] and "perf_counter" not in cell.source:
            # a training cell and the cell that draws from it may share one check
            following = next(j for j in range(i + 1, i + 3) if not unchecked[j])
            assert "assert" in code[following].source


@EVERY
def test_a_hidden_cell_is_hidden_in_jupyterlab_and_in_colab(path):
    for cell in cells(path):
        titled = cell.source.startswith("#@title ")
        assert hidden(cell) == titled == (cell.metadata.get("cellView") == "form")
    assert hidden(cells(path)[0])


@EVERY
def test_links_and_pictures_exist(path):
    for cell in cells(path, "markdown"):
        for alt, target in re.findall(r"(!?\[[^\]]*\])\(([^)\s]+)\)", cell.source):
            if not target.startswith("http"):
                assert (FOLDER / target.split("#")[0]).exists(), target
            assert alt != "![]", "a picture without alt text"


@EVERY
def test_has_exercises_with_hidden_solutions(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    assert "## What to remember" in text and "## Exercises" in text
    assert 2 <= text.count("<details><summary>Solution</summary>") == text.count("</details>")


BUILD = re.compile(r"\*\*\d+\. Build\.\*\*(.*?)</details>", re.DOTALL)
SMALL = {"POINT_STEPS": 20, "PICTURE_STEPS": 2, "OVERFIT_STEPS": 2, "COMPARE_STEPS": 20, "TRAIN_IMAGES": 640}
SMALL |= {"MINI_STEPS": 20, "COPY_STEPS": 20}


def built(path) -> list[str]:
    """The code of the solutions of a notebook's exercises of the third grade."""
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    return ["\n".join(re.findall(r"```python\n(.*?)```", answer, re.DOTALL)) for answer in BUILD.findall(text)]


@pytest.mark.parametrize(
    ("path", "solution"),
    [pytest.param(path, code, id=f"{path.stem}-{i}") for path in NOTEBOOKS for i, code in enumerate(built(path), 1)],
)
def test_what_an_exercise_asks_to_build_runs_after_the_notebooks_own_cells(path, solution, monkeypatch):
    """With those cells that it needs, trainings made small."""
    assert solution, "an exercise to build needs a solution in Python"
    sources, space = [cell.source for cell in cells(path)] + [solution], {}
    monkeypatch.chdir(FOLDER)
    matplotlib.use("Agg")
    with contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():
        for i in needed(sources, len(sources) - 1):
            exec(compile(sources[i], f"{path.stem}, cell {i}", "exec", optimize=1), space)  # our own notebooks' code
            space |= {name: value for name, value in SMALL.items() if name in space}


@pytest.mark.parametrize("stem", [path.stem for path in NOTEBOOKS[:4]])
def test_a_notebook_has_something_to_predict_to_change_and_to_build(stem):
    text = "\n".join(cell.source for cell in cells(FOLDER / f"{stem}.ipynb", "markdown"))
    assert "*Predict, then run:*" in text.split("## Exercises")[0]
    assert "Change one line.**" in text.split("## Exercises")[1] and built(FOLDER / f"{stem}.ipynb")


def test_the_glossarys_links_lead_somewhere_and_its_words_are_sorted():
    text = (FOLDER / "glossary.md").read_text(encoding="utf-8")
    anchors = [
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
    ]
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("http")]
    assert len(targets) > 40
    for target in targets:
        file, _, anchor = target.partition("#")
        assert (FOLDER / file).exists() if file else anchor in anchors, target
    words = re.findall(r"^\| (.*?) \|", text.split("## Words")[1].split("## Gaussians")[0], re.M)[2:]
    assert words == sorted(words, key=str.lower)


def test_the_glossarys_worked_numbers():
    text = (FOLDER / "glossary.md").read_text(encoding="utf-8")
    together = 0.3**2 + 0.4**2
    assert f"variance 0.09 + 0.16 = {together:.2f}, so the standard deviation is {together**0.5:.1f}" in text
    precision = 1 / 1 + 1 / 0.5
    assert f"make {precision:.0f}, so $s^2 = 1/{precision:.0f}$ and $m = (0 + 6)/3 = {3 / 0.5 / precision:.0f}$" in text
    variance, covariance = 0.6**2 * 0.25 + 0.8**2, 0.6 * 0.25
    c = covariance / variance
    assert f"= {variance:.2f}$" in text and f"= {covariance:.2f}$, so $c = {c:.3f}$" in text
    assert f"most likely {c:.3f}" in text and f"= {0.25 - c**2 * variance:.3f}$" in text


@pytest.mark.parametrize("shape", [(5, 2), (2, 3, 8, 8)])
def test_the_whole_model_of_an_hour_walks_as_the_packages(shape):
    code = taught("00_diffusion_in_an_hour") | {"T": 1000}
    for each in code.values():
        getattr(each, "__globals__", {}).update(T=1000)
    angle = (torch.arange(1000, dtype=torch.float64) + 1) / 1000 * math.pi / 2
    ours, start = schedule.Schedule(angle.cos() ** 2), torch.randn(shape)
    assert (ours.alphas_cumprod.sqrt() - schedule.cosine(1000).alphas_cumprod.sqrt()).abs().max() < 0.02
    t = torch.randint(1000, shape[:1])
    noise = torch.randn(shape)
    assert torch.allclose(code["add_noise"](start, noise, t), ours.add_noise(start, noise, t), atol=1e-6)

    def predict(x, t):  # stands in for a network
        return torch.tanh(x * 0.7 + t.reshape(-1, *[1] * (x.dim() - 1)) / 500)

    walk = code["sample"](predict, start, steps=12)
    theirs = list(sampling.ddim(predict, ours, start, steps=12, clip_sample=False))
    assert [t for t, *_ in walk] == [step.t for step in theirs]
    for (_, x_t, guess), step in zip(walk, theirs):
        assert torch.allclose(x_t, step.x_t, atol=1e-4) and torch.allclose(guess, step.x0, atol=1e-4)


def test_the_training_loop_of_an_hour_draws_fresh_noise_and_learns():
    code, seen = taught("00_diffusion_in_an_hour"), []
    code["train"].__globals__["T"] = 1000

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.answer = nn.Parameter(torch.zeros(2))

        def forward(self, x_t, t):
            seen.append(x_t.detach())
            return self.answer.expand(len(x_t), 2)

    net, losses = code["train"](Net(), torch.full((10, 2), 3.0), 400, learning_rate=0.05)
    assert torch.allclose(net.answer, torch.tensor(3.0), atol=0.05) and losses[-1] < losses[0] / 100
    assert len({x_t[0, 0].item() for x_t in seen}) == len(seen) == 400


def test_taught_schedules_are_the_packages():
    code = taught("01_forward_noising")
    for T in (10, 300, 1000):
        assert torch.allclose(code["cosine_alphas_cumprod"](T), schedule.cosine(T).alphas_cumprod)
    assert code["signal_left"](1000) == pytest.approx(schedule.linear(1000).alphas_cumprod[-1].sqrt().item())
    code["alphas_cumprod"] = schedule.cosine(50).alphas_cumprod
    x0, noise, t = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.tensor([0, 7, 30, 49])
    assert torch.allclose(code["add_noise"](x0, noise, t), schedule.cosine(50).add_noise(x0, noise, t))


def test_taught_blocks_are_the_packages():
    code = taught("02_resnet_encoder_decoder")
    t = torch.tensor([0, 3, 999])
    assert torch.equal(code["timestep_embedding"](t, 32), blocks.timestep_embedding(t, 32))
    ours, theirs = code["ResBlock"](16, 8), blocks.ResBlock(16, 16, 8)
    nn.init.normal_(ours.conv2.weight)
    theirs.load_state_dict(ours.state_dict())
    x, embedding = torch.randn(2, 16, 4, 4), torch.randn(2, 8)
    assert torch.allclose(ours(x, embedding), theirs(x, embedding))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_taught_objective_is_the_packages(kind):
    code = taught("03_training_on_stanford_cars")
    x0, noise, output, x_t = torch.randn(4, 2, 3, 4, 4, dtype=torch.float64)
    alpha, sigma = torch.tensor(0.28, dtype=torch.float64), torch.tensor(0.96, dtype=torch.float64)
    for name, first in (("target", (x0, noise)), ("to_sample", (output, x_t))):
        ours = code[name](kind, *first, alpha, sigma)
        assert torch.equal(ours, getattr(prediction, name)(kind, *first, alpha, sigma))
    spectrum = torch.rand(40, dtype=torch.float64).sort(descending=True).values
    for ratio, rank in ((0.1, 3), (1, 20), (7, 40)):
        theirs = evaluation.linear_bottleneck_error(spectrum, ratio, rank, kind)
        assert code["linear_bottleneck_error"](spectrum, ratio, rank, kind) == pytest.approx(theirs)


def test_taught_average_is_the_packages():
    keep = taught("03_training_on_stanford_cars")["ema_warmup"]
    average, current = [torch.tensor([5.0])], [torch.tensor([1.0])]
    expected = 5.0
    for n in range(30):
        optimizers.ema_update(0.7)(average, current, torch.tensor(n))
        expected = keep(0.7, n) * expected + (1 - keep(0.7, n)) * 1.0
    assert average[0].item() == pytest.approx(expected, abs=1e-5)


def test_taught_samplers_are_the_packages():
    code = taught("04_sampling")
    s = schedule.cosine(200)
    start = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    noise = torch.randn(9, 2, 3, 4, 4, dtype=torch.float64)

    def predict(x, t):  # stands in for a network: any function of both will do
        return torch.tanh(x * 0.7 + t.reshape(-1, 1, 1, 1) / 200)

    def levels(t):
        return [v.reshape(()) for v in s.alpha_sigma(t, like=torch.ones(1, dtype=torch.float64))]

    fresh = iter(noise)
    walks = {
        "ddpm": list(sampling.ddpm(predict, s, start, lambda: next(fresh), steps=8)),
        "ddim": list(sampling.ddim(predict, s, start, steps=8)),
        "dpm": list(sampling.dpm_solver_pp(predict, s, start, steps=8)),
    }
    here, after = walks["ddpm"][4:6]
    mean, deviation = code["posterior"](here.x_t, here.x0, *levels(here.t), *levels(after.t))
    assert torch.allclose(mean + deviation * noise[4], after.x_t)
    here, after = walks["ddim"][4:6]
    assert torch.allclose(code["ddim_step"](here.x_t, here.x0, *levels(here.t), *levels(after.t)), after.x_t)
    code["alpha_sigma"] = levels
    whole = code["walk"](predict, start, sampling.timesteps(200, 8), code["ddim_step"])
    assert torch.allclose(whole, walks["ddim"][-1].x_t)
    for eta in (0.5, 1.0):
        here, after = list(sampling.ddim(predict, s, start, lambda: noise[0], steps=8, eta=eta))[4:6]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda x: noise[0])
            ours = code["ddim_step"](here.x_t, here.x0, *levels(here.t), *levels(after.t), eta=eta)
            assert torch.allclose(ours, after.x_t)
            if eta == 1:
                ddpm = code["ddpm_step"](here.x_t, here.x0, *levels(here.t), *levels(after.t))
                assert torch.allclose(ddpm, after.x_t)
    before, here, after = walks["dpm"][3:6]
    (a_p, s_p), (a_t, s_t), (a_s, s_s) = levels(before.t), levels(here.t), levels(after.t)
    h, h_prev = (a_s / s_s).log() - (a_t / s_t).log(), (a_t / s_t).log() - (a_p / s_p).log()
    ours = code["dpm_solver_step"](here.x_t, here.x0, before.x0, h, h_prev, a_s, s_s, s_t)
    assert torch.allclose(ours, after.x_t)


def test_taught_guidance_is_the_packages():
    code, s = taught("04_sampling"), schedule.cosine(1000)

    class Conditional(nn.Module):  # answers what it is asked: any function of all three will do
        def forward(self, x, t, cond=None):
            return torch.tanh(
                x + t.reshape(-1, 1, 1, 1) / 500 + (0 if cond is None else cond.sum(1).reshape(-1, 1, 1, 1))
            )

    denoiser = prediction.Denoiser(Conditional(), s, "sample")
    x, t, cond = torch.randn(4, 3, 8, 8), torch.full((4,), 980), torch.rand(4, 5)
    for scale in (0, 1, 2.5):
        ours = code["guide"](denoiser(x, t, cond), denoiser(x, t, torch.zeros(4, 5)), scale)
        assert torch.allclose(ours, guidance.Guided(denoiser, cond, guidance_scale=scale)(x, t), atol=1e-6)
    for shift in (0, 10, 60):  # the last one would ask beyond the last timestep
        assert torch.equal(code["ask_later"](denoiser, shift)(x, t), guidance.Guided(denoiser, time_shift=shift)(x, t))


@pytest.mark.parametrize("skip", ["indices", "add", "concat"])
def test_taught_skips_are_the_packages(skip):
    step = taught("05_how_small_can_it_be")["decoder_step"]
    there, low = torch.randn(2, 16, 8, 8), torch.randn(2, 24, 4, 4)
    kept = blocks.PoolDown(16, 24)(there)[1] if skip == "indices" else there
    layer = blocks.SkipUp(skip, 24, 16)
    assert torch.equal(step(low, kept, skip, layer.up, layer.mix), layer(low, kept))


def test_taught_edm_is_the_packages():
    x0, noise = torch.randn(2, 50, dtype=torch.float64)
    for alpha, sigma in ((0.6, 0.8), (0.28, 0.96)):
        levels = torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
        ours = taught("05_how_small_can_it_be")["edm_target"](x0, noise, alpha, sigma, 0.4)
        assert torch.allclose(ours, prediction.target("edm", x0, noise, *levels, sigma_data=0.4))


def test_taught_kid_is_the_packages():
    kid = taught("05_how_small_can_it_be")["kid"]
    real, drawn = torch.randn(20, 7, dtype=torch.float64), 1 + torch.randn(20, 7, dtype=torch.float64)
    assert kid(real, drawn) == pytest.approx(metrics.kid(real, drawn)[0], rel=1e-9)


def test_taught_words_attention_and_noise_are_the_packages():
    code, words = taught("06_text_to_image"), ["a", "blue", "left", "red", "van"]
    texts = ["A red, red VAN!", "left a", "", "zebra van", "a van a van a van"]
    ours = [code["to_numbers"](each, words, 4) for each in texts]
    assert ours == text.Tokenizer(words, 4).encode(texts).tolist()

    torch.manual_seed(0)
    layer, x, context = blocks.CrossAttention(8, 6), torch.randn(1, 8, 3, 4), torch.randn(1, 5, 6)
    nn.init.eye_(layer.out.weight[:, :, 0, 0])
    mask = torch.tensor([[True, True, False, True, False]])
    k, v = layer.kv(context[0]).chunk(2, dim=1)
    found = code["cross_attention"](layer.q(layer.norm(x))[0].flatten(1).T, k, v, mask[0])
    assert torch.allclose(layer(x, context, mask)[0].flatten(1).T, x[0].flatten(1).T + found, atol=1e-5)
    maps = code["word_maps"](layer, x, context, mask)  # one head: its shares mix the values to what was found
    assert maps.shape == (5, 3, 4) and torch.allclose(maps.flatten(1).T @ v, found, atol=1e-6)
    wide = blocks.CrossAttention(64, 6)  # two heads
    maps = code["word_maps"](wide, torch.randn(1, 64, 3, 4), context, mask)
    assert torch.allclose(maps.sum(0), torch.ones(3, 4)) and not maps[~mask[0]].any()

    s, level = schedule.cosine(100), torch.tensor([0, 40, 99])
    small, noise = torch.randn(2, 3, 3, 4, 4)
    assert torch.allclose(
        code["low_resolution"](small, level, noise, s), super_resolution.low_resolution_cond(small, s, level, noise)
    )


def test_taught_autoencoder_is_the_packages():
    code = taught("07_latent_diffusion")
    mean, log_variance, noise = torch.randn(3, 2, 4, 3, 3)
    cloud = autoencoder.Posterior(mean, log_variance)
    assert torch.equal(code["random_point"](mean, log_variance, noise), cloud.sample(noise))
    assert torch.allclose(code["divergence"](mean, log_variance), cloud.kl())
    images, answer = torch.randn(2, 2, 3, 6, 8)
    ours = code["loss"](answer, images, mean, log_variance, 0.3)
    assert torch.allclose(ours, autoencoder.autoencoder_loss(lambda images, noise: (answer, cloud), images, noise, 0.3))


def test_taught_redrawing_is_the_packages_ddim():
    code, s, start = taught("07_latent_diffusion"), schedule.cosine(1000), torch.randn(1, 4, 8, 8)

    class Predict:  # stands in for a denoiser
        schedule = s

        def __call__(self, x, t):
            return torch.tanh(x * 0.7 + t.reshape(-1, 1, 1, 1) / 500)

    ours = code["redraw"](Predict(), start, 999, steps=10)
    noisy = s.add_noise(start, sampling.Noise([0], (4, 8, 8))(), torch.tensor([999]))
    *_, theirs = sampling.ddim(Predict(), s, noisy, steps=10, clip_sample=False)
    assert torch.allclose(ours, theirs.x_t, atol=1e-5)


def test_taught_posteriors_feel_both_terms_of_the_elbo():
    fit = taught("07_latent_diffusion")["fit_ovals"]
    pictures = torch.tensor([-0.5, 0.5])[:, None, None, None].expand(2, 3, 2, 2)
    weak, strong = fit(pictures, 150, 0.1), fit(pictures, 600, 1e4)
    assert (weak[2] - pictures).abs().max() < 0.1 and weak[1].max() < -2  # kept apart, and narrow
    mean, log_variance, drawn = strong  # nothing but the prior, and the mean of both
    assert mean.abs().max() < 0.05 and log_variance.abs().max() < 0.3 and drawn.abs().max() < 0.1


@torch.no_grad()
def test_the_notebook_draws_with_stable_diffusions_parts_as_diffusers_does():
    diffusers = pytest.importorskip("diffusers", reason="the oracle for Stable Diffusion is not installed")
    torch.manual_seed(0)
    ways = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 4}
    ways |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "block_out_channels": (8, 16)}
    unet = diffusers.UNet2DConditionModel(8, 4, 4, cross_attention_dim=12, attention_head_dim=4, **ways).eval()
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, scaling_factor=0.18215).eval()
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # Stable Diffusion's
    scheduler = diffusers.DDIMScheduler(**betas, clip_sample=False, timestep_spacing="trailing")
    words, x = torch.randn(2, 7, 12), torch.randn(1, 4, 8, 8)
    draw = taught("07_latent_diffusion")["draw_with"]
    ours = draw(unet, vae, scheduler.alphas_cumprod, words, x, steps=5, guidance_scale=3)

    scheduler.set_timesteps(5)
    for t in scheduler.timesteps:
        conditional, unconditional = (unet(x, t, encoder_hidden_states=text[None]).sample for text in words)
        x = scheduler.step(unconditional + 3 * (conditional - unconditional), t, x).prev_sample
    theirs = vae.decode(x / vae.config.scaling_factor).sample
    assert theirs.std() > 0.01 and torch.allclose(ours, theirs, atol=1e-4)


def test_taught_flow_is_the_packages():
    code, s = taught("09_flow_matching"), schedule.flow(100)
    x0, noise, start = torch.randn(3, 6, 2, dtype=torch.float64)
    for t in (0, 30, 99):
        alpha, sigma = s.alpha_sigma(t, like=x0)
        tau = (t + 1) / 100
        assert torch.allclose(code["straight"](x0, noise, tau), s.add_noise(x0, noise, t) / (alpha + sigma))
    # Any function of both will do as a denoiser; its velocity is (y - x̂₀)/τ.
    walk = sampling.ddim(lambda x, t: torch.tanh(x + t[:, None] / 50), s, start, steps=10, clip_sample=False)

    def velocity(y, tau):
        t = int(torch.round(100 * tau)) - 1
        alpha, sigma = s.alpha_sigma(t, like=y)
        return (y - torch.tanh(y * (alpha + sigma) + t / 50)) / tau

    path = code["euler"](velocity, start, code["even"](10))
    for y, step in zip(path, walk):
        alpha, sigma = s.alpha_sigma(step.t, like=y)
        assert torch.allclose(y, step.x_t / (alpha + sigma))


def test_taught_field_is_that_of_gaussian_data_and_heun_is_of_second_order():
    """Of a Gaussian with standard deviation 2 the velocity is known: y·(τ - 4(1-τ))/(4(1-τ)² + τ²)."""
    code, generator = taught("09_flow_matching"), torch.Generator().manual_seed(0)
    points = 2 * torch.randn(200_000, 2, generator=generator, dtype=torch.float64)

    def right(y, tau):
        return y * (tau - 4 * (1 - tau)) / (4 * (1 - tau) ** 2 + tau**2)

    y = torch.tensor([[1.0, -0.5], [-1.5, 0.3]], dtype=torch.float64)
    assert torch.allclose(code["ideal_x0"](y, 0.4, points), ideal.weights(y, points, 0.6, 0.4) @ points)
    for tau in (0.9, 0.5, 0.3):
        assert torch.allclose(code["exact"](points)(y, tau), right(y, tau), atol=0.1)
    # The walk to τ = 0 through the true field multiplies by 2: variance 1 becomes variance 4.
    errors = {}
    for name in ("euler", "heun"):
        ends = (code[name](right, y, code["even"](steps))[-1] for steps in (20, 40))
        errors[name] = [(end - 2 * y).norm().item() for end in ends]
    assert errors["euler"][0] / errors["euler"][1] == pytest.approx(2, abs=0.3)
    assert errors["heun"][0] / errors["heun"][1] == pytest.approx(4, abs=1.2)


def test_taught_ideal_denoisers_are_the_packages():
    code, pictures = taught("08_why_new_cars"), torch.rand(6, 3, 8, 8) * 2 - 1
    x_t, levels = torch.randn(2, 3, 8, 8), (torch.tensor(0.6), torch.tensor(0.8))
    rows = x_t.flatten(1), pictures.flatten(1)
    assert torch.equal(code["weights"](*rows, *levels), ideal.weights(*rows, *levels))
    assert torch.equal(code["whole"](x_t, pictures, *levels), ideal.whole(x_t, pictures, *levels))
    for patch in (3, 5):
        each = (code["patch_weights"](x_t[0], pictures, *levels, patch) for code in (code, vars(ideal)))
        assert torch.equal(*each)
        for name in ("patched", "anywhere"):
            ours = code[name](x_t, pictures, *levels, patch)
            assert torch.equal(ours, getattr(ideal, name)(x_t, pictures, *levels, patch))


@torch.no_grad()
def test_taught_transformer_is_the_packages():
    code, x, t = taught("10_any_network"), torch.randn(2, 3, 8, 12), torch.tensor([3, 700])
    assert torch.equal(code["to_pictures"](code["to_tokens"](x, 4), 4, (8, 12)), x)
    assert torch.equal(code["grid_positions"](2, 3, 16), dit.grid_positions(2, 3, 16))
    ours, theirs = code["DiT"](dim=24, depth=2, heads=3), dit.DiT(dim=24, depth=2, heads=3)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.1)
    names = {"qkv": "mix.qkv", "out": "mix.out"}  # the package exchanges attention for an MLP
    weights = {".".join(names.get(part, part) for part in name.split(".")): p for name, p in ours.state_dict().items()}
    weights |= {f"head.{part}": weights.pop(part) for part in ("modulation.weight", "modulation.bias")}
    weights |= {f"head.out.{part}": weights.pop(f"head.{part}") for part in ("weight", "bias")}
    weights["stem.weight"] = weights["stem.weight"].reshape(24, 3, 4, 4)
    theirs.load_state_dict(weights)
    torch.testing.assert_close(ours(x, t), theirs(x, t), rtol=1e-4, atol=1e-5)

    seen = code["looks"](theirs, x, t, 1)  # mixed by these shares, values of one head become what attention found
    assert seen.shape == (2, 6, 6) and torch.allclose(seen.sum(2), torch.ones(2, 6))
    layer, tokens = dit.TokenAttention(8, 1), torch.randn(2, 5, 8)
    found, shares = code["attention"](tokens, layer.qkv, layer.out, 1)
    torch.testing.assert_close(found, layer(tokens), rtol=1e-4, atol=1e-5)
    values = layer.qkv(tokens).chunk(3, 2)[2]
    torch.testing.assert_close(layer.out(shares[:, 0] @ values), found, rtol=1e-4, atol=1e-5)
    across, theirs = code["AcrossTokens"](5), mixer.AcrossTokens(5)
    theirs.load_state_dict(across.state_dict())
    assert torch.equal(across(tokens), theirs(tokens))


def test_taught_reach_is_the_packages(monkeypatch):
    class Blind(nn.Conv2d):
        def forward(self, x, t):
            return super().forward(x)

    denoiser = prediction.Denoiser(Blind(3, 3, 5, padding=2), schedule.cosine(100), "sample")
    x0, places, noise = torch.rand(6, 3, 9, 9), torch.randint(9, (6, 2)), torch.randn(6, 3, 9, 9)
    draws = iter((torch.ones(6, 1, 1).long(), places[:, 0].reshape(-1, 1, 1), places[:, 1].reshape(-1, 1, 1)))
    ours = taught("10_any_network")["reach"](denoiser, x0, noise, 40, places)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: next(draws))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)
    torch.testing.assert_close(ours, evaluation.reach(denoiser, x0, 40))


def test_taught_adapters_are_the_packages():
    def new():
        torch.manual_seed(0)
        return build("resnet", channels=[16, 24], stem=2, embedding_dim=16, attention=[4], upsample="nearest").eval()

    code, ours, theirs = taught("11_your_own_pictures"), new(), new()
    for add, net in ((code["add_adapters"], ours), (lora.add, theirs)):
        torch.manual_seed(1)
        add(net, 2)
        for name, parameter in net.named_parameters():
            if name.endswith(".up"):
                nn.init.normal_(parameter)
    assert lora.adapters(ours).keys() == lora.adapters(theirs).keys()
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    assert torch.equal(ours(x, t), theirs(x, t)) and not torch.equal(ours(x, t), new()(x, t))


@pytest.mark.skipif("CI" in os.environ, reason="the tree is a fresh clone in CI")
def test_no_second_source_of_the_notebooks():
    assert [path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".md")] == ["glossary.md"]


@EVERY
def test_every_picture_says_what_it_shows(path):
    for cell in cells(path):
        for out in cell.outputs:
            if "image/png" in out.get("data", {}):
                assert len(out.metadata["image/png"]["alt"]) > 12, cell.source[-100:]
    for cell in cells(path, "markdown"):
        assert not re.findall(r"!\[\s*\]\(|<img(?![^>]*alt=\"[^\"]+\")", cell.source)
