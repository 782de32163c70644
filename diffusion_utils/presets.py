"""The networks that training takes where none is asked for, one for each kind of pictures and task."""

from diffusion_utils.networks.autoencoder import Autoencoder

# Both under a million parameters.  The first has no way around its bottleneck, and does its work at
# 16×16 and 8×8, where a CPU computes fastest; it is the network of notebooks 02 and 03.
CARS = {
    "name": "resnet",
    "channels": [64, 96],
    "depth": [1, 3],
    "decoder_channels": [64, 32],
    "decoder_depth": 1,
    "stem": 4,
    "embedding_dim": 64,
}
# What notebook 05 led to: twice as fine a stem, two more halvings, skips, attention at 8×8 and 4×4, and
# a head that answers whole patches.
CARS_1M = {
    "name": "resnet",
    "channels": [32, 64, 80, 96],
    "decoder_depth": 1,
    "stem": 2,
    "skip": "add",
    "upsample": "nearest",
    "patch_head": True,
    "attention": [8, 16],
    "embedding_dim": 48,
}
TOY = {
    "name": "resnet",
    "channels": [48, 64, 96],
    "decoder_channels": [64, 48],
    "decoder_depth": 1,
    "stem": 2,
    "embedding_dim": 64,
}
# As CARS_1M, for 32×32, with attention at 8×8 and 4×4, where it meets the words of captions.
TOY_TEXT = {
    "name": "resnet",
    "channels": [32, 64, 96],
    "decoder_depth": 1,
    "stem": 2,
    "skip": "add",
    "upsample": "nearest",
    "patch_head": True,
    "attention": [4, 8],
    "embedding_dim": 64,
}
# Most of a picture that is shown small is there already: three resolutions, no attention.
DETAILS = {
    "name": "resnet",
    "channels": [32, 48, 64],
    "decoder_depth": 1,
    "stem": 2,
    "skip": "add",
    "upsample": "nearest",
    "patch_head": True,
    "embedding_dim": 48,
}
# 64×64×3 to 16×16×4: a twelfth of the numbers.
AUTOENCODER = {"name": "autoencoder", "channels": [32, 64], "latent_channels": 4, "depth": 1, "stem": 2}
# For latents, by the autoencoder's stride: CARS_1M from 16×16 on, or from 8×8 on; deeper at the first
# resolution, where it has no larger picture to work on.
LATENT = {
    "name": "resnet",
    "channels": [64, 80, 96],
    "decoder_depth": 1,
    "depth": [2, 1, 1],
    "stem": 1,
    "skip": "add",
    "upsample": "nearest",
    "patch_head": True,
    "attention": [2, 4],
    "embedding_dim": 48,
}
LATENT_8 = {**LATENT, "channels": [80, 96], "depth": [3, 1], "attention": [1, 2]}
PRESETS = {
    "stanford_cars": {"network": CARS_1M, "text": CARS_1M, "size": 64},
    "toy_cars": {"network": TOY, "text": TOY_TEXT, "size": 32},
    "folder": {"network": CARS_1M, "text": CARS_1M, "size": 64},
}


def default_size(data: str) -> int:
    """Pixels per side, by the name that --data gives."""
    return PRESETS.get(data, PRESETS["folder"])["size"]


def default_network(
    data: str, condition: str | None = None, objective: str = "denoising", autoencoder: Autoencoder | None = None
) -> dict:
    """What --data, --condition, --objective and --autoencoder ask for, where --network is not given."""
    if objective == "autoencoder":
        return AUTOENCODER
    if autoencoder is not None:
        return LATENT if autoencoder.stride < 8 else LATENT_8
    preset = PRESETS.get(data, PRESETS["folder"])
    return {"caption": preset["text"], "low_resolution": DETAILS}.get(condition, preset["network"])
