"""An autoencoder that turns pictures into few numbers and back, for diffusion in its latent space.

A variational autoencoder (Kingma & Welling 2014, 1312.6114) as latent diffusion has it (Rombach et al.
2022, 2112.10752, section 3.1): reconstruction matters most, and a weak pull towards the normal
distribution keeps the latents in bounds.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion_utils.networks.blocks import Downsample, ResBlock, check_size, group_norm, upsample
from diffusion_utils.networks.registry import register


class Posterior(NamedTuple):
    """What the encoder believes about a picture's latent: a normal distribution for every number.

    Attributes:
        mean, log_variance: (N, latent_channels, H/stride, W/stride).
    """

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """One latent from it, differentiable (the reparametrization trick: Kingma & Welling, eq. 10).

        noise: standard normal, shaped like `mean`.
        """
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def kl(self) -> Tensor:
        """KL divergence from the standard normal distribution, nats per number, a scalar (their
        appendix B)."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance).mean()


@register("autoencoder")
class Autoencoder(nn.Module):
    """Pictures to latents and back.

        picture ─ stem ─ [blocks ─ down] … blocks ─ latent ─ blocks … [up ─ blocks] ─ picture

    Args:
        channels: width of each stage; between two stages the resolution halves.
        latent_channels: numbers per place of the latent.
        depth: residual blocks per stage, in the encoder and in the decoder.
        stem: the picture is read, and answered, in patches of stem×stem pixels.

    Attributes:
        stride: picture height / latent height.
        scaling_factor: what latents are multiplied with for diffusion, so that they have variance 1,
            as the noise has (Rombach et al., appendix G); set after training, see `set_scale`.

    Shape:
        forward: pictures (N, 3, H, W) in [-1, 1] and noise, shaped like the latents, to their
        reconstruction, (N, 3, H, W), and the `Posterior` its latent was drawn from; without noise the
        latent is the mean.
    """

    cond_shape = None

    def __init__(self, channels: tuple[int, ...] = (32, 64), latent_channels: int = 4, depth: int = 1, stem: int = 2):
        super().__init__()
        if stem < 1 or latent_channels < 1 or depth < 1 or not channels:
            raise ValueError("channels needs at least one width; stem, latent_channels and depth at least 1")
        if latent_channels > 3 * (stem * 2 ** (len(channels) - 1)) ** 2:
            raise ValueError(f"latent_channels {latent_channels} gives more numbers than the picture has: lower it")
        self.stride, self.latent_channels = stem * 2 ** (len(channels) - 1), latent_channels
        encoder: list[nn.Module] = [nn.PixelUnshuffle(stem), nn.Conv2d(3 * stem**2, channels[0], 3, padding=1)]
        for before, width in zip((None, *channels), channels):
            if before is not None:
                encoder.append(Downsample(before, width))
            encoder += [ResBlock(width, width) for _ in range(depth)]
        encoder += [group_norm(width), nn.SiLU(), nn.Conv2d(width, 2 * latent_channels, 3, padding=1)]
        self.encoder = nn.Sequential(*encoder)

        decoder: list[nn.Module] = [nn.Conv2d(latent_channels, channels[-1], 3, padding=1)]
        for before, width in zip((None, *channels[::-1]), channels[::-1]):
            if before is not None:
                decoder.append(upsample("nearest", before, width))
            decoder += [ResBlock(width, width) for _ in range(depth)]
        decoder += [group_norm(width), nn.SiLU(), nn.Conv2d(width, 3 * stem**2, 3, padding=1), nn.PixelShuffle(stem)]
        self.decoder = nn.Sequential(*decoder)
        self.register_buffer("scaling_factor", torch.ones(()))

    def encode(self, images: Tensor) -> Posterior:
        """Pictures (N, 3, H, W) in [-1, 1] to distributions of latents; H and W divisible by `stride`."""
        check_size(images, self.stride)
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        return Posterior(mean, log_variance.clamp(-20, 10))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, latent_channels, h, w) to pictures (N, 3, stride·h, stride·w), about in [-1, 1]."""
        return self.decoder(latents)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Posterior]:
        posterior = self.encode(images)
        return self.decode(posterior.mean if noise is None else posterior.sample(noise)), posterior

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Of one picture's latent."""
        return self.latent_channels, height // self.stride, width // self.stride

    @torch.no_grad()
    def to_latents(self, images: Tensor) -> Tensor:
        """The means of pictures' latents, scaled for diffusion; in parts, to spare memory."""
        return torch.cat([self.encode(part).mean * self.scaling_factor for part in images.split(256)])

    @torch.no_grad()
    def from_latents(self, latents: Tensor) -> Tensor:
        """Pictures in [-1, 1] from latents scaled for diffusion."""
        return torch.cat([self.decode(part / self.scaling_factor) for part in latents.split(256)]).clamp(-1, 1)

    def set_scale(self, images: Tensor) -> None:
        """Set `scaling_factor` to 1 / (standard deviation of these pictures' latents)."""
        self.scaling_factor.fill_(1.0)
        self.scaling_factor.fill_(1 / self.to_latents(images).std())


def autoencoder_loss(net: nn.Module, images: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
    """What an autoencoder is trained on: colours and edges (`pixel_loss`), and `kl_weight` times the KL divergence
    per latent number, the pull towards the normal distribution.

    Args:
        net: an `Autoencoder`.
        images: (N, 3, H, W) in [-1, 1].
        noise: standard normal, shaped like the latents.
    """
    answer, posterior = net(images, noise)
    return pixel_loss(answer.float(), images) + kl_weight * posterior.kl()


def pixel_loss(answer: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of the pixels, and of the differences between neighbours, without which everything small
    is blurred away.

    Args:
        answer, images: (N, 3, H, W).
    """
    error = answer - images
    return error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
