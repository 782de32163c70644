"""The pictures under images/, each made from the data, from shipped weights or from what benchmarks/ measured.

    STANFORD_CARS_ROOT=… python -m diffusion_utils figures            # all of them
    python -m diffusion_utils figures samples --out images            # one

Nothing is picked: examples are the first held-out files by name, samples have seeds 0 … 63.
"""

import base64
import io
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from diffusion_utils import ideal, pipeline, pretrained
from diffusion_utils.checks import check_folder, suggestions
from diffusion_utils.data import pictures, plane, stanford_cars, to_float, to_uint8, toy_cars
from diffusion_utils.data.captions import captions as all_captions
from diffusion_utils.evaluation import features
from diffusion_utils.evaluation.metrics import nearest
from diffusion_utils.files import write_atomically
from diffusion_utils.networks import build, stages
from diffusion_utils.networks.presets import CARS
from diffusion_utils.plotting import network_drawing, picture_grid, points, save_picture, show_grid, strip
from diffusion_utils.plotting.plane import Plane, mesh, planes
from diffusion_utils.sampling import Noise, ddim, sample
from diffusion_utils.schedule import make_schedule

FIGURES: dict[str, Callable[..., Path]] = {}


def figures(names: tyro.conf.Positional[tuple[str, ...]] = (), out: Path = Path("images")) -> None:
    """Make the pictures of the README and of the notebooks from the data, shipped weights and benchmarks' results.

    Args:
        names: Which ones; default: all.
        out: The folder to write to.
    """
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise ValueError(f"no figure named {unknown[0]!r}: choose one of {suggestions(unknown[0], FIGURES)}")
    check_folder(out, endings=(*Image.registered_extensions(), ".svg"))
    for name in names or FIGURES:
        print(FIGURES[name](out))


def figure(file: str) -> Callable[[Callable], Callable[..., Path]]:
    """Decorator: a function that makes a picture now writes it into a folder, under this name, and returns its path."""

    def add(make: Callable) -> Callable[..., Path]:
        @wraps(make)
        def write(out: Path, *args, **options) -> Path:
            made, path = make(*args, **options), out / file
            save = {list: save_animation, Figure: save_figure, np.ndarray: save_picture}[type(made)]
            save(made, path)
            return path

        FIGURES[make.__name__] = write
        return write

    return add


HEADLINE = "stanford-cars-1m"
PROMPTS = (
    "a red 2012 BMW convertible, a blue Ford pickup, a yellow Lamborghini coupe, a black 2012 Audi sedan, "
    "a white van, an orange SUV"
).split(", ")
LADDER = [
    f"cars32-{row}"
    for row in ("first-epsilon", "first-sample", "segnet-sample", "add-edm", "add-sample", "none-sample", "best")
]


def save_figure(drawn: Figure, path: Path) -> None:
    """A matplotlib figure as PNG or, where the path ends so, SVG; the same bytes whenever it is made.

    SVG has its letters drawn, for readers without the font, and its own white ground, so that it can
    be read on a dark page, too.
    """
    metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    how = {"format": path.suffix[1:], "metadata": metadata, "facecolor": "white", "transparent": False}
    with rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "path"}):
        write_atomically(path, lambda temporary: drawn.savefig(temporary, **how))


def save_animation(frames: list[np.ndarray], path: Path) -> None:
    """Frames as a WebP that moves, seven a second, and rests on the last one for three seconds."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    how = {"duration": [140] * len(rest) + [3000], "loop": 0, "quality": 40, "method": 6}
    write_atomically(path, lambda file: first.save(file, format="WEBP", save_all=True, append_images=rest, **how))


@figure("diffusion_in_an_hour.png")
def an_hour(notebook: Path = Path("notebooks/00_diffusion_in_an_hour.ipynb")):
    """Dots that walk from noise onto the outline of a car, as notebook 0 has drawn them with its own network."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (walk,) = [cell for cell in cells if "#@title Draws the walk at seven stops" in "".join(cell["source"])]
    (png,) = [output["data"]["image/png"] for output in walk["outputs"]]
    return np.array(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))


@figure("stanford_cars_examples.png")
def examples():
    """Eight real car crops, 64×64 each and side by side, for notebook 01 to put noise on."""
    cars = stanford_cars.load().part(held_out=True)
    return np.concatenate(list(cars.images[:8].permute(0, 2, 3, 1).numpy()), axis=1)


@figure("stanford_cars_crops.png")
def crops():
    """Four whole frames with the annotated box and the 4:3 window, above what the network sees."""
    root = stanford_cars.find()
    if root is None:
        raise FileNotFoundError(f"Stanford Cars was not found. {stanford_cars.GET_IT}")
    sources, _ = stanford_cars.read_annotations(root, "train")
    height, width, gap = 168, 224, 8
    sheet = Image.new("RGB", (4 * (width + gap) - gap, 2 * height + gap), "white")
    held_out = [s for s in sources if pictures.is_held_out(s[0].name)]
    for column, (file, box, _) in enumerate(held_out[:4]):
        frame = Image.open(file).convert("RGB")
        window = pictures.window(box, frame.size)
        # Room for the part of the window that leaves the photograph.
        left, top = min(0, window[0]), min(0, window[1])
        all_width, all_height = max(frame.width, window[2]) - left, max(frame.height, window[3]) - top
        scale = min((width - 2) / all_width, (height - 2) / all_height)
        whole = Image.new("RGB", (width, height), "white")
        x, y = round(-left * scale), round(-top * scale)
        whole.paste(frame.resize((round(frame.width * scale), round(frame.height * scale))), (x, y))
        draw = ImageDraw.Draw(whole)
        for edges, colour in ((box, "#ffcc00"), (window, "#ff3355")):
            draw.rectangle([(v - o) * scale for v, o in zip(edges, (left, top) * 2)], outline=colour, width=2)
        x = column * (width + gap)
        sheet.paste(whole, (x, 0))
        seen = pictures.crop(frame, box, 64).resize((width, height), Image.Resampling.BICUBIC)
        sheet.paste(seen, (x, height + gap))
    return np.array(sheet)


@figure("stanford_cars_samples.jpg")
def samples():
    """The README's grid: 8×8 cars from noise, seeds 0 … 63, none left out."""
    return picture_grid(pipeline.load(HEADLINE)(seeds=range(64)), scale=1.5)


@figure("noise_to_cars.webp")
def moving():
    """Eight cars coming out of noise, seeds 0 … 7: what the sampler has at each of its steps."""
    steps = pipeline.load(HEADLINE).trajectory(range(8))
    return [picture_grid(step.x_t, columns=4, scale=1.5) for step in steps]


@figure("toy_cars_samples.png")
def toy_samples():
    """Toy cars from noise, seeds 0 … 31."""
    return picture_grid(sample(pretrained.load("toy-cars-resnet"), range(32), (3, 32, 32), "ddpm", 100), scale=3)


@figure("toy_cars.png")
def toy_examples():
    """The first 16 toy cars."""
    return picture_grid(toy_cars.load(16, 64).images, scale=1.5)


@figure("encoder_decoder.svg")
def encoder_decoder():
    """The network of notebook 3 as a row of boxes."""
    return network_drawing(stages(build(**CARS)))


@figure("stanford_cars_captions.png")
def captions():
    """The first eight held-out photographs with their captions, made of their class and their pixels."""
    cars = stanford_cars.load().part(held_out=True)
    texts = [of_one[0] for of_one in all_captions(cars)[:8]]
    return show_grid(cars.images[:8], 4, titles=texts)


@figure("text_to_image.png")
def prompts(name: str = "stanford-cars-text"):
    """What weights draw for six prompts, seeds 0 … 5."""
    pipe, seeds = pipeline.load(name), range(6)
    rows = [pipe(seeds, prompt=prompt) for prompt in PROMPTS]
    return strip(rows, [f"seed {i}" for i in seeds], PROMPTS, width=5.2)


@figure("latent_diffusion.png")
def latents():
    """As `prompts`, by `stanford-cars-latent`."""
    return prompts.__wrapped__("stanford-cars-latent")


@figure("autoencoders.png")
def autoencoders():
    """The first eight held-out photographs, and what comes back from two autoencoders."""
    photos = stanford_cars.load().part(held_out=True).images[:8]
    rows = [photos]
    for stride in (4, 8):
        net = pretrained.load(f"stanford-cars-autoencoder-{stride}").net
        rows.append(to_uint8(net.from_latents(net.to_latents(to_float(photos)))))
    return strip(rows, [str(i) for i in range(1, 9)], ["photograph", "16×16×4", "8×8×8"])


@figure("segnet.svg")
def segnet():
    """SegNet as the ladder of notebook 5 has it, for 32×32 pictures."""
    net = build("segnet", channels=[24, 48, 112], depth=2, embedding_dim=64)
    return network_drawing(stages(net, (3, 32, 32)), (3, 32, 32))


@figure("u_net.svg")
def u_net():
    """A U-Net of the size of SegNet's drawing, with its skip connections."""
    net = build("unet", channels=[16, 32, 64], depth=1, embedding_dim=64)
    return network_drawing(stages(net, (3, 32, 32)), (3, 32, 32))


@figure("forward_process.png")
def forward_process():
    """The first three held-out photographs, drowning in noise by the cosine schedule."""
    photos, schedule = to_float(stanford_cars.load().part(held_out=True).images[:3]), make_schedule("cosine", 1000)
    noise = Noise(range(3), (3, 64, 64))()
    times = (0, 100, 200, 400, 600, 800, 999)
    rows = torch.stack([schedule.add_noise(photos, noise, t) for t in times], dim=1)
    return strip(list(rows), [f"t = {t}" for t in times], width=6)


@figure("reverse_process.png")
def reverse_process():
    """Two cars on their way from noise, seeds 0 and 1: above what the sampler has, below the guess."""
    seeds = range(2)
    steps = list(pipeline.load(HEADLINE).trajectory(seeds))
    stops = [steps[i] for i in (0, 4, 8, 12, 16, 18, 20)]
    rows = [torch.stack([getattr(step, what)[i] for step in stops]) for i in seeds for what in ("x_t", "x0")]
    labels = [f"seed {i}, {what}" for i in seeds for what in ("x_t", "x̂₀")]
    times = [f"t = {step.t}" if step.t >= 0 else "finished" for step in stops]
    return strip(rows, times, labels, width=6)


@figure("flow_matching.png")
def flow_matching():
    """Noise of the plane on its way to a car's outline, and the velocity field, both exact (see notebook 9)."""
    car, schedule = plane.points("car"), make_schedule("flow", 100)

    def guess(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedule.alpha_sigma(t, like=x_t)
        return ideal.weights(x_t, car, alpha[0], sigma[0]) @ car

    steps = {step.t: step.x_t for step in ddim(guess, schedule, Noise(range(300), (2,))(), clip_sample=False)}
    panels, grid = {}, mesh(13)
    for t in (99, 39, 9):
        at = torch.full((len(grid),), t)
        alpha, sigma = schedule.alpha_sigma(at, like=grid)
        back = (guess((alpha + sigma) * grid, at) - grid) * (alpha + sigma) / sigma  # -u = (x̂₀ - y)/τ
        dots = steps[t] / (alpha + sigma)[0]
        panels[f"τ = {(t + 1) / 100:.1f}"] = Plane(dots=dots, ghosts=car, arrows=(grid, back))
    return planes(panels | {"τ = 0": Plane(dots=steps[-1])}, width=6)


@figure("mosaics.png")
def mosaics():
    """What ideal denoisers that know 1,024 toy cars draw, seeds 0 … 4, and a network from the same noise."""
    cars, schedule = to_float(toy_cars.load(1024, 32).images), make_schedule("cosine", 1000)
    denoisers = {"whole picture": ideal.Ideal(cars, schedule), "patches of 17": ideal.Ideal(cars, schedule, 17)}
    denoisers |= {"patches of 9": ideal.Ideal(cars, schedule, 9), "network": pretrained.load("toy-cars-resnet")}
    drawn = [sample(denoiser, range(5), (3, 32, 32), "ddim", 20) for denoiser in denoisers.values()]
    return strip(drawn, [f"seed {i}" for i in range(5)], list(denoisers), width=6)


@figure("ladder.png")
def ladder():
    """What the shipped rungs of notebook 5's ladder draw, seeds 0 … 7."""
    drawn = [sample(pretrained.load(name), range(8), (3, 32, 32), steps=20) for name in LADDER]
    labels = [name.removeprefix("cars32-") for name in LADDER]
    return strip(drawn, [f"seed {i}" for i in range(8)], labels, width=5.5)


@figure("nearest_neighbours.png")
def nearest_neighbours():
    """Eight drawn cars (seeds 0 … 7) above the training pictures nearest to them."""
    train = stanford_cars.load(size=32).part(held_out=False).images
    seen = torch.cat([train, train.flip(3)])  # training mirrored its pictures
    drawn = to_uint8(sample(pretrained.load("cars32-none-sample"), range(8), (3, 32, 32), "ddpm", 100))
    by_pixels = nearest(drawn, seen)[1][:, 0]
    by_features = nearest(features.features(drawn), features.cached(seen))[1][:, 0]
    labels = ["drawn", "nearest in pixels", "nearest in features"]
    return strip([drawn, seen[by_pixels], seen[by_features]], [f"seed {i}" for i in range(8)], labels)


@figure("learning_curve.svg")
def learning_curve(results: Path = Path("benchmarks/results")):
    """KID of the headline's snapshots against the pictures seen in training, for each way of drawing that several were
    drawn in (benchmarks/ways.py curve); and of the weights at the end of its stages, where the learning rate has fallen
    to 0, against the test pictures (benchmarks/ways.py guidance)."""
    same = {"sampler": "dpm_solver_pp", "steps": 20, "guide": None, "interval": None, "timestep_spacing": None}
    rows = []
    for path in [*sorted(results.glob("curve-*.json")), *results.glob("guidance-stanford-cars-1m.json")]:
        snapshots = path.name.startswith("curve-")
        part = dict(seed=0, count=748, condition=None) if snapshots else dict(part="test", guidance_rescale=None)
        for row in json.loads(path.read_bytes()):
            if all(row.get(key) == value for key, value in (same | part).items()):
                rows.append(row | {"rate fell": not snapshots})
    lines = {}
    order = ("rate fell", "guidance_scale", "time_shift", "images_seen")
    for row in sorted(rows, key=lambda row: [row[key] for key in order]):
        name = f"time shift {row['time_shift']}" if row["time_shift"] else "no time shift"
        if row["guidance_scale"] != 1:
            kind = "skip-layer" if row["skip_layers"] else "classifier-free"
            name += f", {kind} guidance, w = {row['guidance_scale']:g}"
        if row["rate fell"]:
            name = f"ends of stages: {name}"
        lines.setdefault(name, []).append((row["images_seen"] / 1e6, 1000 * row["generated"]["kid"], ""))
    lines = {name: line for name, line in lines.items() if len(line) > 1}
    if not lines:
        command = "benchmarks/ways.py curve"
        raise FileNotFoundError(f"{results} holds no two snapshots to compare: run {command} on a training")
    drawn = points(lines, "million pictures seen", "KID × 1000")
    above = (0.5, 1.0)  # where no line is
    drawn.set_figheight(4.2)
    drawn.axes[0].legend(loc="lower center", bbox_to_anchor=above, ncols=1, frameon=False)
    return drawn


@figure("rulers.svg")
def rulers(results: Path = Path("benchmarks/results")):
    """KID of ways of drawing by an early and by the last layer of one network, on validation photographs; measured
    by benchmarks/ways.py guidance."""
    file = results / "guidance-stanford-cars-1m.json"
    rows = [row for row in json.loads(file.read_bytes()) if row.get("part") == "validation"] if file.exists() else []
    if not rows:
        command = "benchmarks/ways.py guidance --part validation"
        raise FileNotFoundError(f"{results} holds no ways of drawing measured on validation: run {command}")
    rows = [row for row in rows if row["images_seen"] == max(row["images_seen"] for row in rows)]  # as shipped now
    scores = {row["way"].replace("without encoder.7", "skip-layer"): row["generated"] for row in rows}
    scores["photographs"] = rows[0]["floor"]
    downwards = sorted(scores.items(), key=lambda item: -item[1]["kid_early"])
    ways = {way: [(1000 * score["kid"], 1000 * score["kid_early"], "")] for way, score in downwards}
    drawn = points(ways, "KID × 1000, last layer", "KID × 1000, early layer")
    drawn.axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)  # beside the points
    return drawn


@figure("peers-32-cpu.png")
def peers(results: Path = Path("benchmarks/results")):
    """What each network of benchmarks/peers.py draws after equal minutes of training, seeds 0 … 7."""
    return peers_of(results / "peers-32-cpu.json")


@figure("peers-32-cpu-longer.png")
def peers_longer(results: Path = Path("benchmarks/results")):
    """What the small ones among them draw after equally many pictures, and a large one after an hour, seeds 0 … 7."""
    return peers_of(results / "peers-32-cpu-longer.json")


def peers_of(rows: Path):
    drawn, labels = [], []
    for row in json.loads(rows.read_bytes()):
        grid = rows.with_name(f"{rows.stem}-{row['peer'].replace(' ', '-')}.png")
        if grid.exists():  # weights of the package have none
            pixels = torch.from_numpy(np.array(Image.open(grid).convert("RGB"))).permute(2, 0, 1)
            # As benchmarks/peers.py saves them: rows of eight, twice the size, a little apart.
            height, width = 2 * row["size"], round(2 * row["size"] * 4 / 3)
            starts = range(0, pixels.shape[2], round((pixels.shape[2] - width) / 7))
            drawn.append(torch.stack([pixels[:, :height, i : i + width] for i in starts]))
            labels.append(f"{row['peer'].removesuffix(', 1 M')}, {row['parameters'] / 1e6:.0f} M")
    return strip(drawn, [f"seed {i}" for i in range(8)], labels, width=5)
