"""Denoising networks, all with one interface (and an `Autoencoder`, with its own):

    net(x_t, t, cond=None)      # x_t (N, C, H, W), t int64 (N,), cond None or (N, *net.cond_shape)

which answers (N, C, H, W).  `net.cond_shape` is the shape of one picture's condition; None where it takes
none, or (super-resolution) makes it of the pictures themselves.
"""

from diffusion_utils.networks.autoencoder import Autoencoder
from diffusion_utils.networks.blocks import Both, without
from diffusion_utils.networks.dit import DiT
from diffusion_utils.networks.mixer import Mixer
from diffusion_utils.networks.registry import NETWORKS, build, register
from diffusion_utils.networks.resnet import ResNetEncoderDecoder
from diffusion_utils.networks.segnet import SegNet
from diffusion_utils.networks.summary import Stage, count_macs, count_parameters, stages
from diffusion_utils.networks.super_resolution import SuperResolution
from diffusion_utils.networks.text import TextToImage
from diffusion_utils.networks.unet import UNet
