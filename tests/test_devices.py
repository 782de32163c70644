"""A GPU without one: every function that takes tensors keeps to their device.

PyTorch's fake tensors have a shape, a type and a device, here "cuda", and no numbers: an operation that mixes
devices fails as it would on a GPU, and nothing needs a driver.  Left out is what fake tensors cannot do: backward
passes, generators on a GPU (here noise comes from torch's own stream), and whatever reads numbers.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_utils import networks, pretrained
from diffusion_utils.data import order, to_float, to_uint8
from diffusion_utils.data.sets import as_latents
from diffusion_utils.guidance import Guided, skip_layers
from diffusion_utils.networks.autoencoder import autoencoder_loss
from diffusion_utils.networks.super_resolution import low_resolution_cond, shrink
from diffusion_utils.pipeline import DEFAULT, Pipeline
from diffusion_utils.prediction import PREDICTION_TYPES, Denoiser, min_snr_weight
from diffusion_utils.sampling import SAMPLERS, Noise, sample
from diffusion_utils.schedule import make_schedule
from diffusion_utils.training import TrainConfig, batches
from diffusion_utils.training.batches import Batch, make_batch, make_cond, make_low_resolution
from diffusion_utils.training.consistency import consistency_loss
from diffusion_utils.training.loop import make_objective
from diffusion_utils.training.optimizers import ema_update, make_optimizer

# A fake tensor warns that its memory is looked for; there is none.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
SCHEDULE = make_schedule("cosine", 100)
SMALL = {"name": "resnet", "channels": [16, 32], "stem": 2, "embedding_dim": 16}
TEXT = {"name": "text_to_image", "net": SMALL | {"attention": [4]}, "words": ["a", "red", "car"], "length": 4}
NETWORKS = {
    "resnet": SMALL,
    "skips and attention": SMALL | {"skip": "concat", "attention": [2, 4], "cond_dim": 5, "patch_head": True},
    "indices": SMALL | {"skip": "indices", "decoder_depth": 1},
    "segnet": {"name": "segnet", "channels": [8, 16], "embedding_dim": 16},
    "unet": {"name": "unet", "channels": [8, 16], "depth": 1, "embedding_dim": 16, "attention": [2]},
    "dit": {"name": "dit", "dim": 24, "depth": 2, "embedding_dim": 16, "cond_dim": 5},
    "mixer": {"name": "mixer", "size": 16, "dim": 16, "depth": 2, "embedding_dim": 16},
    "text_to_image": TEXT,
    "text to a dit": TEXT | {"net": {"name": "dit", "dim": 24, "depth": 1, "embedding_dim": 16}},
    "super_resolution": {"name": "super_resolution", "net": SMALL, "max_noise": 50},
}


@pytest.fixture
def gpu(monkeypatch):
    """Inside, tensors on "cuda" are fake, and `gpu(module)` moves a module there."""

    class NoGenerator:
        def __init__(self, device="cpu"):
            pass

        def manual_seed(self, seed):
            return None

    class Yes:
        def all(self):
            return True

    monkeypatch.setattr(torch, "Generator", NoGenerator)
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda tensor: Yes())  # its answer is read
    monkeypatch.setattr(type(SCHEDULE), "__post_init__", lambda schedule: None)  # reads the numbers, on the CPU
    for module, name in ((batches, "_log_noise_levels"), (order, "_epoch_order")):
        # Without its memory, in which fake tensors would wait for the tests that follow.
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def move(module: nn.Module) -> nn.Module:
            for part in module.modules():
                for tensors in (part._parameters, part._buffers):
                    for name, tensor in tensors.items():
                        if tensor is not None:
                            there = mode.from_tensor(tensor.detach()).to("cuda")
                            tensors[name] = nn.Parameter(there) if tensors is part._parameters else there
            return module

        yield move


def there(*shape, whole=None) -> torch.Tensor:
    """A tensor of that shape on the GPU; `whole`: of whole numbers below."""
    return torch.randn(shape, device="cuda") if whole is None else torch.randint(whole, shape, device="cuda")


def built(network: dict) -> nn.Module:
    return networks.build(**network).eval().requires_grad_(False)


def conditions(net: nn.Module) -> torch.Tensor | None:
    """Two conditions as the network takes them."""
    if isinstance(net, networks.TextToImage):
        return there(2, *net.cond_shape, whole=3)
    if isinstance(net, networks.SuperResolution):
        return there(2, 4, 8, 8)
    return there(2, *net.cond_shape) if net.cond_shape else None


def on_gpu(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        assert tensor.device.type == "cuda", tensor


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_and_losses(gpu, name):
    net = gpu(built(NETWORKS[name]))
    cond = conditions(net)
    for prediction_type in PREDICTION_TYPES:
        with unset_fake_temporarily():  # it looks at the schedule's numbers
            denoiser = Denoiser(net, SCHEDULE, prediction_type)
        x, t = there(2, 3, 16, 16), there(2, whole=100)
        weight = min_snr_weight(prediction_type, SCHEDULE.snr(t).to(x))
        on_gpu(denoiser(x, t, cond), denoiser(x, t), denoiser.loss(x, x, t, cond, weight))
        on_gpu(consistency_loss(denoiser, x, x, t, 2, cond))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers(gpu, sampler):
    denoiser = Denoiser(gpu(built(SMALL)), SCHEDULE, "v_prediction")
    on_gpu(sample(denoiser, [0, 1], (3, 16, 16), sampler, 3, "cuda"))


def test_noise_is_drawn_here_and_moved(gpu):
    on_gpu(Noise([0, 1], (3, 8, 8), "cuda")())


@pytest.mark.parametrize("kind", ("conditional", "classifier-free", "autoguidance", "skip-layer"))
def test_guidance(gpu, monkeypatch, kind):
    monkeypatch.setattr(torch, "allclose", lambda a, b: True)  # reads numbers
    net = gpu(built(NETWORKS["skips and attention"]))
    denoiser, cond = Denoiser(net, SCHEDULE, "sample"), there(2, 5)
    guide = {"autoguidance": denoiser, "skip-layer": skip_layers(denoiser, ["encoder.0"])}.get(kind)
    guided = Guided(denoiser, cond, guide, 1 if kind == "conditional" else 2, time_shift=10)
    on_gpu(guided(there(2, 3, 16, 16), there(2, whole=100)))


def test_batches(gpu, monkeypatch):
    monkeypatch.setattr("diffusion_utils.training.batches.batch_indices", lambda step, batch, *_: torch.arange(batch))
    images, config = there(8, 3, 16, 16, whole=255).to(torch.uint8), TrainConfig(batch_size=4)
    x0, noise, t = make_batch(images, 0, config)
    on_gpu(x0, noise, t, *make_batch(images, 1, replace(config, timestep_sampling="lognormal", flip=False)))
    on_gpu(make_cond(there(8, 5), 0, config), make_cond(there(8, 3, 5), 0, config))
    net = networks.build(**NETWORKS["super_resolution"])
    on_gpu(make_low_resolution(x0, net, make_schedule("cosine", 100), 0, config))
    on_gpu(shrink(x0), low_resolution_cond(x0, SCHEDULE, torch.randint(50, (4,), device="cuda"), noise))
    on_gpu(to_float(images), to_uint8(noise))


class Waits(TorchDispatchMode):
    """Finds copies from the host for which it waits; numbers that are read are an error of fake tensors anyway."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation is torch.ops.aten._to_copy.default and args[0].device.type != "cuda":
            there = torch.device(kwargs.get("device") or "cpu").type == "cuda"
            assert not there or kwargs.get("non_blocking"), f"the host waits for a copy of {tuple(args[0].shape)}"
        return operation(*args, **kwargs)


def test_a_step_never_waits_for_the_gpu(gpu, monkeypatch):
    """All of it but the backward pass, which has no part of ours, and the average, whose count is on the host."""
    monkeypatch.setattr("diffusion_utils.training.batches.batch_indices", lambda step, batch, *_: torch.arange(batch))
    images, config = there(8, 3, 16, 16, whole=255).to(torch.uint8), TrainConfig(batch_size=4, min_snr_gamma=5.0)
    cond, net = there(8, 5), gpu(built(NETWORKS["skips and attention"]))
    with unset_fake_temporarily():  # it looks at the schedule's numbers
        denoiser = Denoiser(net, SCHEDULE, "v_prediction")
    optimizer = make_optimizer("muon", net, 1e-3, 0.01)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    with Waits():
        with pytest.raises(AssertionError, match="the host waits"):
            torch.zeros(3).to("cuda")
        for sampling in ("uniform", "lognormal"):
            x0, noise, t = make_batch(images, 0, replace(config, timestep_sampling=sampling))
        batch = Batch(x0, noise, t % 100, make_cond(cond, 0, config))
        on_gpu(make_objective(config, denoiser)(batch, 0.0))
        on_gpu(consistency_loss(denoiser, x0, noise, t % 100, 2))
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()


@pytest.mark.parametrize("name", ("adamw", "muon"))
def test_optimizers_and_the_average(gpu, name):
    net, averaged = (gpu(networks.build(**SMALL)) for _ in range(2))
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    make_optimizer(name, net, 1e-3, 0.01).step()
    ema_update(0.99)([*averaged.parameters()], [*net.parameters()], 3)
    on_gpu(*net.parameters(), *averaged.parameters())


def test_autoencoders(gpu):
    with unset_fake_temporarily():
        net = pretrained.load_autoencoder("stanford-cars-autoencoder-8")
    net = gpu(net)
    latents = as_latents(net, there(2, 3, 64, 64, whole=255).to(torch.uint8), mirrored=True)
    on_gpu(latents, net.from_latents(latents))
    on_gpu(autoencoder_loss(net, there(2, 3, 64, 64), there(2, *net.latent_shape(64, 64)), 1e-3))


def card_of(network: dict, size: int) -> dict:
    return {"size": size, "conditions": {name: 0.2 for name in "abcde"}} if "cond_dim" in network else {"size": size}


@pytest.mark.parametrize("network", (SMALL, NETWORKS["skips and attention"], TEXT), ids=("plain", "class", "text"))
def test_pipelines_draw_there_and_bring_the_pictures_here(gpu, monkeypatch, network):
    net = gpu(built(network))
    card = card_of(network, 16) | ({"prompts": ["a red car"]} if network is TEXT else {})
    monkeypatch.setattr("diffusion_utils.pipeline.chosen_by_seed", lambda shares, seeds: torch.zeros(len(seeds)).long())
    pipe = Pipeline(Denoiser(net, SCHEDULE, "sample"), card, DEFAULT, device="cuda")
    draw = partial(pipe, range(2), steps=3)
    if network is not SMALL:
        draw = partial(draw, guidance_scale=2.0)
    if network is TEXT:
        draw = partial(draw, prompt="a car")
    if "cond_dim" in network:
        draw = partial(draw, "a")
    pictures = draw()
    assert pictures.device.type == "cpu" and pictures.shape == (2, 3, 16, 16) and pictures.dtype == torch.uint8


def test_enlarging(gpu, monkeypatch):
    monkeypatch.setattr(type(SCHEDULE), "_checked", lambda schedule, t: t.long())  # reads numbers, on the CPU only
    net = gpu(built(NETWORKS["super_resolution"]))
    pipe = Pipeline(Denoiser(net, SCHEDULE, "sample"), {"size": 16}, DEFAULT, device="cuda")
    assert pipe.enlarge(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0, 1], 10, steps=2).shape == (2, 3, 16, 16)


def test_mixing_devices_is_what_these_tests_see(gpu):
    net = gpu(built(SMALL))
    with pytest.raises(Exception, match="on the same device"):
        net(torch.zeros(2, 3, 16, 16), there(2, whole=100))


@torch.no_grad()
def test_both_guesses_of_skip_layer_guidance_compile_as_one_graph():
    torch.manual_seed(0)
    denoiser = Denoiser(built(NETWORKS["skips and attention"]), SCHEDULE, "sample")
    for parameter in denoiser.net.parameters():
        nn.init.normal_(parameter, std=0.1)
    both = Guided(denoiser, guide=skip_layers(denoiser, ["encoder.3"]), guidance_scale=2).both.net
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 80])
    better, worse = found = torch.compile(both, backend="aot_eager", fullgraph=True)(x, t)
    torch.testing.assert_close(found, both(x, t))
    assert not torch.allclose(better, worse)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compile_as_one_graph(name):
    """Forward and backward, as on a GPU, but for the code generator, which would take minutes."""
    torch.manual_seed(0)
    net = networks.build(**NETWORKS[name])
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)  # heads start at zero
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 80])
    cond = (
        torch.ones(2, *net.cond_shape, dtype=torch.int64 if name.startswith("text") else None)
        if net.cond_shape
        else None
    )
    losses, gradients = [], []
    for called in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        loss = Denoiser(called, SCHEDULE, "sample").loss(x, x.flip(0), t, cond)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, [*net.parameters()], allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)
