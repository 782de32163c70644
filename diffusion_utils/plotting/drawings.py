"""Networks, drawn as rows of boxes."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from diffusion_utils.plotting.style import COLOURS, FONT_SIZE, WIDTH, style, with_alt


def network_drawing(stages: Sequence, shape: tuple[int, int, int] = (3, 64, 64)) -> Figure:
    """A network as a row of boxes: as tall as its pictures, as wide as its channels (by root); what
    is carried past the bottleneck (skip connections, pooling indices) as arcs above.  The bottleneck, the
    narrowest map, stands out by its edge, and its numbers per picture stand below it.

    Args:
        stages: from `networks.stages`; those without height and width (the embedding) are left out.
        shape: of the picture that goes in, (C, H, W).
    """
    boxes = [("input", "", tuple(shape), 0)] + [s for s in stages if len(s[2]) == 3]
    if len(boxes) < 2:
        raise ValueError("no stages to draw: pass networks.stages(net, shape)")
    fill = dict.fromkeys(("encoder", "down", "pool"), COLOURS[5])
    fill |= dict.fromkeys(("decoder", "up", "unpool"), COLOURS[4]) | dict.fromkeys(("input", "head", "stem"), "0.85")
    places = []  # middle and top of each box
    with style() as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 2.9), layout="constrained")
        plt.close(figure)
        x = 0.0
        for part, kind, (channels, height, width), _ in boxes:
            wide = 0.5 + channels**0.5 / 6
            tall = height / shape[1] * 6
            axes.add_patch(plt.Rectangle((x, -tall / 2), wide, tall, facecolor=fill.get(part, "0.7"), edgecolor="0.25"))
            middle, small = x + wide / 2, {"color": "black", "fontsize": FONT_SIZE - 1}
            turned = 90 if tall > wide else 0
            axes.text(middle, 0, f"{channels}", ha="center", va="center", color="black", rotation=turned)
            size = f"{height}²" if height == width else f"{height}×{width}"
            axes.text(middle, tall / 2 + 0.15, size, ha="center", va="bottom", **small)
            label = part if part in ("input", "stem", "head") else kind.split(" + ")[0]
            axes.text(middle, -3.3, label, ha="right", va="top", rotation=40, rotation_mode="anchor", **small)
            places.append((middle, tall / 2))
            x += wide + 0.45
        narrowest, (channels, height, width) = _narrowest(boxes)
        axes.patches[narrowest].set(edgecolor=COLOURS[1], linewidth=2.5, zorder=3)
        small_maps = [place for place, (_, _, shape, _) in zip(places, boxes) if shape[1] == height]
        axes.annotate(
            f"bottleneck: {channels} × {height} × {width} = {channels * height * width:,}",
            (places[narrowest][0], -places[narrowest][1] - 0.1),
            (sum(middle for middle, _ in small_maps) / len(small_maps), -2.6),
            ha="center",
            va="center",
            color=COLOURS[1],
            fontsize=FONT_SIZE,
            arrowprops={"arrowstyle": "->", "color": COLOURS[1], "shrinkB": 0},
        )
        for start, end in _skips(boxes):
            axes.annotate(
                "",
                (places[end][0], places[end][1] + 0.6),
                (places[start][0], places[start][1] + 0.6),
                arrowprops={"arrowstyle": "->", "color": "0.45", "lw": 0.8, "connectionstyle": "arc3,rad=-0.15"},
            )
        axes.set(xlim=(-0.8, x), ylim=(-5.2, 6 if _skips(boxes) else 3.9))
        axes.set_axis_off()
    first, *_, last = sizes = ["×".join(map(str, size)) for _, _, size, _ in boxes]
    carried = f"; {len(_skips(boxes))} arrows lead past its middle" if _skips(boxes) else ""
    text = f"A network as a row of {len(boxes)} boxes: from {first} numbers (channels × height × width) "
    return with_alt(figure, f"{text}down to {sizes[narrowest]} and up to {last}{carried}")


def _narrowest(boxes: Sequence) -> tuple[int, tuple[int, int, int]]:
    """Place and shape of the map of the fewest numbers; of several, the last before the maps grow again."""
    sizes = [math.prod(shape) for _, _, shape, _ in boxes]
    place = max(i for i, size in enumerate(sizes) if size == min(sizes))
    return place, boxes[place][2]


def _skips(boxes: Sequence) -> list[tuple[int, int]]:
    """Which boxes a skip connection starts from and ends in, read off the kinds of the layers."""
    kinds = [kind.split(" + ")[0] for _, kind, *_ in boxes]
    is_unet = any(part == "up" for part, *_ in boxes)
    kept, pairs = [], []
    for i, (part, *_) in enumerate(boxes):
        if is_unet and (part == "stem" or part == "down" and kinds[i] != "SelfAttention"):
            kept.append(i)  # a U-Net keeps the output of every block
        elif kinds[i] in ("Downsample", "PoolDown", "MaxPool2d") and not is_unet:
            kept.append(i - 1)
        if kinds[i] in ("SkipUp", "MaxUnpool2d") or (part == "up" and kinds[i] == "ResBlock"):
            pairs.append((kept.pop(), i))
    return pairs
