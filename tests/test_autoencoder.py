"""The autoencoder: shapes, its loss against torch's own formulas, scaling, and that it learns to copy."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusion_utils import evaluation, pretrained
from diffusion_utils.data import to_float, toy_cars
from diffusion_utils.networks import build
from diffusion_utils.networks.autoencoder import Autoencoder, Posterior, autoencoder_loss
from diffusion_utils.prediction import Denoiser
from diffusion_utils.schedule import cosine
from diffusion_utils.training import TrainConfig, train
from diffusion_utils.training.batches import Batches

SMALL = {
    "f4": ({"channels": [8, 16], "latent_channels": 4}, (4, 4, 4)),
    "f8": ({"channels": [8, 16, 16], "latent_channels": 8}, (8, 2, 2)),
    "no patches": ({"channels": [8, 8], "stem": 1, "latent_channels": 2}, (2, 8, 8)),
    "deep": ({"channels": [8], "stem": 4, "depth": 3, "latent_channels": 1}, (1, 4, 4)),
}


def new(**options):
    torch.manual_seed(0)
    net = Autoencoder(**{"channels": [8, 16], **options})
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(0, 0.1)
    return net


@pytest.mark.parametrize("options, shape", SMALL.values(), ids=SMALL)
def test_pictures_become_latents_and_pictures_again(options, shape):
    net, x = build("autoencoder", **options), torch.rand(3, 3, 16, 16) * 2 - 1
    posterior = net.encode(x)
    assert posterior.mean.shape == posterior.log_variance.shape == (3, *shape)
    assert net.latent_shape(16, 16) == shape and net.stride == 16 // shape[1]
    answer, again = net(x, torch.randn(3, *shape))
    assert answer.shape == x.shape and torch.equal(again.mean, posterior.mean)
    assert torch.equal(net(x)[0], net.decode(posterior.mean))


def test_gradients_reach_every_parameter():
    net = new()
    autoencoder_loss(net, torch.rand(2, 3, 16, 16), torch.randn(2, 4, 4, 4), 0.1).backward()
    assert not {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}


def test_samples_have_the_posteriors_mean_and_variance():
    posterior = Posterior(torch.tensor([[2.0]]), torch.tensor([[math.log(9.0)]]))
    drawn = posterior.sample(torch.randn(20000, 1, generator=torch.Generator().manual_seed(0)))
    assert drawn.mean().item() == pytest.approx(2, abs=0.1) and drawn.std().item() == pytest.approx(3, abs=0.1)


def test_the_kl_divergence_is_torchs():
    mean, log_variance = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_variance).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(Posterior(mean, log_variance).kl(), theirs.mean())
    assert Posterior(torch.zeros(1), torch.zeros(1)).kl() == 0


def test_the_loss_counts_colours_edges_and_divergence():
    class Fixed(nn.Module):
        def forward(self, images, noise):
            return answer, Posterior(torch.ones(1, 1), torch.zeros(1, 1))

    images = torch.zeros(1, 3, 4, 4)
    answer = images + 0.5  # all colours wrong, all edges right
    assert autoencoder_loss(Fixed(), images, None, 0.0).item() == pytest.approx(0.5)
    assert autoencoder_loss(Fixed(), images, None, 0.1).item() == pytest.approx(0.5 + 0.1 * 0.5)
    answer = images.clone()
    answer[..., ::2] = 1.0  # stripes: half of the colours wrong, every edge across
    assert autoencoder_loss(Fixed(), images, None, 0.0).item() == pytest.approx(0.5 + 1.0)


def test_scaled_latents_have_variance_one_and_lead_back():
    net, images = new().eval(), to_float(toy_cars.load(30, 16).images)
    net.set_scale(images)
    latents = net.to_latents(images)
    assert latents.std().item() == pytest.approx(1, abs=1e-4) and net.scaling_factor != 1
    torch.testing.assert_close(net.from_latents(latents), net(images)[0].clamp(-1, 1), atol=1e-5, rtol=0)
    net.set_scale(images)  # a second time changes nothing
    torch.testing.assert_close(net.to_latents(images), latents)


def test_the_scale_is_kept_with_the_weights(tmp_path):
    net = new().eval()
    net.set_scale(to_float(toy_cars.load(8, 16).images))
    about = {
        "network": {"name": "autoencoder", "channels": [8, 16]},
        "prediction_type": "sample",
        "schedule": "cosine",
        "num_train_timesteps": 1000,
        "zero_terminal_snr": False,
    }
    pretrained.save(tmp_path / "a.safetensors", Denoiser(net, cosine(1000), "sample"), about, torch.float32)
    loaded = pretrained.load(tmp_path / "a.safetensors").net
    assert torch.equal(loaded.scaling_factor, net.scaling_factor)


def test_training_draws_noise_for_the_latents():
    config = TrainConfig(
        {"name": "autoencoder", "channels": [8, 16]}, objective="autoencoder", steps=1, batch_size=200, flip=False
    )
    batch = Batches(toy_cars.load(8, 16).images, None, new(), config)[3]
    assert batch.x0.shape == (200, 3, 16, 16) and batch.noise.shape == (200, 4, 4, 4)
    assert abs(batch.noise.mean()) < 0.03 and abs(batch.noise.std() - 1) < 0.03


def test_it_learns_to_copy():
    images = toy_cars.load(64, 16).images
    network = {"name": "autoencoder", "channels": [16, 16], "latent_channels": 8}
    config = TrainConfig(
        network,
        objective="autoencoder",
        steps=300,
        batch_size=16,
        learning_rate=5e-3,
        warmup_steps=5,
        ema_decay=0.9,
        mixed_precision="no",
        log_every=300,
        flip=False,
    )
    (record,) = train(config, images)
    quality = evaluation.reconstruction_quality(record.denoiser.net, images)
    blurred = F.interpolate(F.avg_pool2d(to_float(images), 4), scale_factor=4, mode="bilinear")
    plain = 10 * math.log10(4 / (blurred - to_float(images)).square().mean().item())
    assert quality["psnr"] > plain + 1.5 and quality["ssim"] > 0.6


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="multiples of the network's stride, 4"):
        new().encode(torch.zeros(1, 3, 10, 16))
    with pytest.raises(ValueError, match="at least one width"):
        Autoencoder(channels=())
    with pytest.raises(ValueError, match="belong together"):
        TrainConfig({"name": "autoencoder"}, steps=1)
    with pytest.raises(ValueError, match="belong together"):
        TrainConfig(steps=1, objective="autoencoder")
