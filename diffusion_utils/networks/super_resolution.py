"""Super-resolution: a denoiser conditioned on the picture it is to draw, small.

The second stage of a cascade (Ho et al. 2022, 2106.15282; DALL-E 2; Imagen): one network draws a
small picture, another one draws a larger picture from it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_utils.networks.registry import build, register
from diffusion_utils.schedule import Schedule


@register("super_resolution")
class SuperResolution(nn.Module):
    """Any picture network, its input widened by the small picture, enlarged, and its noise level.

    In training the small pictures come from real ones; in a cascade another network has drawn
    them, with mistakes that real ones do not have.  So training puts noise on them, little or much, and
    gives the network its level (conditioning augmentation: Imagen, 2205.11487, section 2.5 and
    appendix A.1): it learns not to believe its condition to the last pixel.

    Args:
        net: name and options of the network, as for `networks.build`.
        scale: how many times larger the answer is.
        max_noise: the strongest noise put on small pictures in training, as a timestep.

    Shape:
        x_t (N, 3, H, W), t int64 (N,), cond None or (N, 4, H/scale, W/scale) from `low_resolution_cond`
        to (N, 3, H, W).
    """

    cond_shape = None  # made from the training pictures themselves

    def __init__(self, net: dict, scale: int = 2, max_noise: int = 500):
        super().__init__()
        if scale < 2 or max_noise < 1:
            raise ValueError(f"scale must be at least 2 and max_noise at least 1, not {scale} and {max_noise}")
        self.scale, self.max_noise = scale, max_noise
        self.net = build(**net, picture_channels=7, out_channels=3)

    @property
    def stride(self) -> int:
        return self.net.stride

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is None:
            cond = x_t.new_zeros(len(x_t), 4, x_t.shape[2] // self.scale, x_t.shape[3] // self.scale)
        enlarged = F.interpolate(cond.to(x_t), x_t.shape[2:], mode="bilinear")
        return self.net(torch.cat([x_t, enlarged], dim=1), t)


def shrink(images: Tensor, scale: int = 2) -> Tensor:
    """Float pictures (N, C, H, W) to (N, C, H/scale, W/scale), bicubic, antialiased: a little outside [-1, 1]."""
    return F.interpolate(images, scale_factor=1 / scale, mode="bicubic", antialias=True)


def low_resolution_cond(small: Tensor, schedule: Schedule, level: Tensor, noise: Tensor) -> Tensor:
    """The condition of `SuperResolution`: the small picture with noise of a level, and the level.

    Args:
        small: (N, 3, h, w) in [-1, 1].
        level: timesteps int64 (N,), of the forward process that is put on it.
        noise: standard normal, shaped like `small`.

    Returns:
        (N, 4, h, w); the last channel is level/T everywhere.
    """
    share = (level / schedule.num_train_timesteps).to(small).reshape(-1, 1, 1, 1).expand_as(small[:, :1])
    return torch.cat([schedule.add_noise(small, noise, level), share], dim=1)
