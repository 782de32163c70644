"""Super-resolution: the network's condition, in training as in drawing, and that it uses it."""

import pytest
import torch
from torch import nn

from diffusion_utils import pipeline, pretrained
from diffusion_utils.data import to_uint8, toy_cars
from diffusion_utils.networks import build
from diffusion_utils.networks.super_resolution import low_resolution_cond, shrink
from diffusion_utils.pipeline import Pipeline
from diffusion_utils.prediction import Denoiser
from diffusion_utils.schedule import cosine
from diffusion_utils.training import TrainConfig, train
from diffusion_utils.training.batches import make_batch, make_low_resolution

NET = {
    "name": "resnet",
    "channels": [8, 16],
    "stem": 2,
    "decoder_depth": 1,
    "skip": "add",
    "patch_head": True,
    "upsample": "nearest",
    "embedding_dim": 16,
}
SCHEDULE = cosine(1000)


def new(**options):
    torch.manual_seed(0)
    net = build("super_resolution", net=NET, **options).eval()
    for p in net.parameters():
        nn.init.normal_(p, 0, 0.1)
    return net


def test_small_pictures_are_averages():
    small = shrink(torch.full((1, 3, 8, 8), 0.3))
    assert small.shape == (1, 3, 4, 4) and torch.allclose(small, torch.tensor(0.3), atol=1e-6)
    checkerboard = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert shrink(checkerboard.expand(1, 3, 8, 8))[..., 1:-1, 1:-1].abs().max() < 0.05  # 1 if pixels were picked
    assert shrink(torch.zeros(1, 3, 16, 16), 4).shape == (1, 3, 4, 4)


def test_the_condition_is_the_small_picture_its_noise_and_how_much():
    small, noise, level = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([0, 400])
    cond = low_resolution_cond(small, SCHEDULE, level, noise)
    assert cond.shape == (2, 4, 4, 4)
    assert torch.equal(cond[:, :3], SCHEDULE.add_noise(small, noise, level))
    assert (cond[0, 3] == 0).all() and torch.allclose(cond[1, 3], torch.tensor(0.4))
    assert (cond[0, :3] - small[0]).abs().max() < 0.1


def test_the_answer_depends_on_the_small_picture_and_its_noise_level():
    net, x, t = new(), torch.randn(1, 3, 16, 16), torch.tensor([700])
    cond = torch.rand(1, 4, 8, 8)
    answer = net(x, t, cond)
    assert answer.shape == x.shape
    for channel in (0, 2, 3):
        other = cond.clone()
        other[:, channel] += 0.5
        assert not torch.allclose(net(x, t, other), answer, atol=1e-4)
    assert torch.equal(net(x, t), net(x, t, torch.zeros_like(cond)))


def test_gradients_reach_every_parameter():
    net = new()
    net(torch.randn(4, 3, 16, 16), torch.arange(4), torch.rand(4, 4, 8, 8)).square().mean().backward()
    assert not {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}


def test_training_makes_conditions_of_its_own_pictures_with_noise_of_every_level():
    images, net = toy_cars.load(6, 16).images, new(max_noise=300)
    config = TrainConfig(steps=1, batch_size=300)
    x0, _, _ = make_batch(images, 5, config)
    cond = make_low_resolution(x0, net, SCHEDULE, 5, config)
    level = (cond[:, 3, 0, 0] * 1000).round().long()
    assert cond.shape == (300, 4, 8, 8) and level.min() < 20 and 280 < level.max() < 300
    clean = level < 10
    assert clean.any() and (cond[clean, :3] - shrink(x0)[clean]).abs().mean() < 0.05  # flipped as x0 is
    error = cond[:, :3] - shrink(x0) * SCHEDULE.alphas_cumprod[level].sqrt()[:, None, None, None].float()
    expected = (1 - SCHEDULE.alphas_cumprod[level]).float().sqrt()
    assert torch.allclose(error.std((1, 2, 3)), expected, rtol=0.25, atol=0.02)
    parts = [make_low_resolution(x0[i * 150 : i * 150 + 150], net, SCHEDULE, 5, config, (i, 2)) for i in range(2)]
    assert torch.allclose(torch.cat(parts), cond)


def test_a_network_learns_to_look_at_the_small_picture():
    """Flat pictures, dark or light: nothing but the small one says which, and the answer follows it."""
    images = torch.stack([torch.full((3, 16, 16), 50), torch.full((3, 16, 16), 205)]).to(torch.uint8)
    config = TrainConfig(
        network={"name": "super_resolution", "net": NET},
        steps=200,
        batch_size=16,
        warmup_steps=5,
        learning_rate=5e-3,
        ema_decay=0.9,
        mixed_precision="no",
        log_every=200,
    )
    (record,) = train(config, images)
    small = torch.stack([torch.full((3, 8, 8), 205), torch.full((3, 8, 8), 50)]).to(torch.uint8)
    drawn = Pipeline(record.denoiser, {}).enlarge(small, [0, 1], steps=5)
    assert drawn.shape == (2, 3, 16, 16) and drawn.dtype == torch.uint8
    assert (drawn[0].float() - 205).abs().mean() < 25 and (drawn[1].float() - 50).abs().mean() < 25


def test_a_picture_is_enlarged_alike_in_whatever_batch():
    enlarge = Pipeline(Denoiser(new(), SCHEDULE, "sample"), {}).enlarge
    small = torch.rand(3, 3, 8, 8) * 2 - 1
    together = enlarge(small, [5, 6, 7], noise_level=200, steps=3)
    alone = enlarge(small[1:2], [6], noise_level=200, steps=3)
    assert (together[1:2].int() - alone.int()).abs().max() <= 1
    other = enlarge(small[1:2], [6], noise_level=0, steps=3)
    assert not torch.equal(other, alone)
    rounded = enlarge(to_uint8(small), [5, 6, 7], noise_level=200, steps=3)
    assert (rounded.int() - together.int()).abs().float().mean() < 2


def test_what_cannot_be_enlarged_is_said(tmp_path, tiny_weights):
    plain = Denoiser(build(**NET), SCHEDULE, "sample")
    with pytest.raises(ValueError, match="cannot enlarge"):
        Pipeline(plain, {}).enlarge(torch.zeros(1, 3, 8, 8), [0])
    with pytest.raises(ValueError, match=r"noise_level must lie in \[0, 499\]"):
        Pipeline(Denoiser(new(), SCHEDULE, "sample"), {}).enlarge(torch.zeros(1, 3, 8, 8), [0], noise_level=500)
    with pytest.raises(ValueError, match="scale must be at least 2"):
        new(scale=1)
    path = tiny_weights(tmp_path / "up.safetensors", network={"name": "super_resolution", "net": NET})
    assert pretrained.load(path).net.scale == 2


def test_the_noise_on_the_small_picture_is_not_that_of_the_large_one(monkeypatch):
    seen = []
    monkeypatch.setattr(
        pipeline,
        "low_resolution_cond",
        lambda small, schedule, level, noise: seen.append(noise) or low_resolution_cond(small, schedule, level, noise),
    )
    Pipeline(Denoiser(new(), SCHEDULE, "sample"), {}).enlarge(torch.zeros(2, 3, 8, 8), [3, 4], steps=1)
    for seed, noise in zip((3, 4), seen[0], strict=True):
        own = torch.randn(noise.shape, generator=torch.Generator().manual_seed(seed))
        assert abs(torch.corrcoef(torch.stack([own.flatten(), noise.flatten()]))[0, 1]) < 0.3


def test_levels_of_noise_lie_within_the_timesteps():
    config = TrainConfig({"name": "super_resolution", "net": NET}, num_train_timesteps=200, steps=1)
    with pytest.raises(ValueError, match="max_noise 500 is beyond the 200 timesteps"):
        next(train(config, toy_cars.load(2, 16).images))
