"""The networks that training takes where none is asked for, one for each kind of pictures and task."""

from diffusion_utils.networks.autoencoder import Autoencoder

# Both under a million parameters.  The first has no way around its bottleneck, and does its work at
# 16×16 and 8×8, where a CPU computes fastest; it is the network of notebooks 02 and 03.
CARS = dict(
    name="resnet", channels=[64, 96], depth=[1, 3], decoder_channels=[64, 32], decoder_depth=1, stem=4, embedding_dim=64
)
TOY = dict(name="resnet", channels=[48, 64, 96], decoder_channels=[64, 48], decoder_depth=1, stem=2, embedding_dim=64)
# What notebook 05 led to: twice as fine a stem, two more halvings, skips, attention at 8×8 and 4×4, and
# a head that answers whole patches.
_SKIPS = dict(name="resnet", decoder_depth=1, stem=2, skip="add", upsample="nearest", patch_head=True)
CARS_1M = _SKIPS | dict(channels=[32, 64, 80, 96], attention=[8, 16], embedding_dim=48)
# As CARS_1M, for 32×32, with attention at 8×8 and 4×4, where it meets the words of captions.
TOY_TEXT = _SKIPS | dict(channels=[32, 64, 96], attention=[4, 8], embedding_dim=64)
# A fifth of a million parameters, for letters and other simple things.
LETTERS = _SKIPS | dict(channels=[24, 32, 48], attention=[8], embedding_dim=48)
# Most of a picture that is given small is there already: three resolutions, no attention.
DETAILS = _SKIPS | dict(channels=[32, 48, 64], embedding_dim=48)
# For latents, by the autoencoder's stride: CARS_1M from 16×16 on, or from 8×8 on; deeper at the first
# resolution, where it has no larger picture to work on.
LATENT = _SKIPS | dict(channels=[64, 80, 96], depth=[2, 1, 1], stem=1, attention=[2, 4], embedding_dim=48)
LATENT_8 = LATENT | dict(channels=[80, 96], depth=[3, 1], attention=[1, 2])
# 64×64×3 to 16×16×4: a twelfth of the numbers.
AUTOENCODER = dict(name="autoencoder", channels=[32, 64], latent_channels=4, depth=1, stem=2)

# By the name that --data gives: what learns without captions, what learns with them, pixels per side.
PRESETS = {
    "stanford_cars": {"network": CARS_1M, "text": CARS_1M, "size": 64},
    "toy_cars": {"network": TOY, "text": TOY_TEXT, "size": 32},
    "letters": {"network": LETTERS, "text": LETTERS, "size": 32},
    "folder": {"network": CARS_1M, "text": CARS_1M, "size": 64},
}


def default_size(data: str) -> int:
    """Pixels per side, by the name that --data gives."""
    return PRESETS.get(data, PRESETS["folder"])["size"]


def default_network(
    data: str, condition: str | None = None, objective: str = "denoising", autoencoder: Autoencoder | None = None
) -> dict:
    """What --data, --condition, --objective and --autoencoder ask for, where --network is not given."""
    if objective in ("autoencoder", "decoder"):
        return AUTOENCODER
    if autoencoder is not None:
        return LATENT if autoencoder.stride < 8 else LATENT_8
    preset = PRESETS.get(data, PRESETS["folder"])
    return {"caption": preset["text"], "low_resolution": DETAILS}.get(condition, preset["network"])


def for_latents(network: dict, autoencoder: Autoencoder) -> dict:
    """A picture network as the channels of an autoencoder's latents need it.

    Raises:
        ValueError: it was given others, or is a network that cannot work on latents.
    """
    if network.get("name") == "super_resolution":
        raise ValueError("super-resolution works on pixels here: leave --autoencoder out")
    if network.get("name") == "text_to_image":
        return {**network, "net": for_latents(network.get("net", {}), autoencoder)}
    channels = autoencoder.latent_channels
    if network.get("picture_channels", channels) != channels:
        raise ValueError(
            f"the autoencoder's latents have {channels} channels, not {network['picture_channels']}: "
            "leave picture_channels out"
        )
    return {**network, "picture_channels": channels}
