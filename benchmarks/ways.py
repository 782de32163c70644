"""Weights × ways of drawing → scores.

    STANFORD_CARS_ROOT=… python benchmarks/ways.py guidance
    STANFORD_CARS_ROOT=… python benchmarks/ways.py samplers
    STANFORD_CARS_ROOT=… python benchmarks/ways.py prompts --weights stanford-cars-text
    STANFORD_CARS_ROOT=… python benchmarks/ways.py latent runs/pixels runs/latents-4 runs/latents-8
    STANFORD_CARS_ROOT=… python benchmarks/ways.py curve runs/cars

Every way draws the same seeds and is compared with the same real pictures.  What is measured already is kept,
so a command may be interrupted.  Each question has its own --help.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
import tyro
from common import RESULTS, Results, by_name, chosen, command, measure, name_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_utils import networks, pipeline, pretrained
from diffusion_utils.commands.sample import DEVICE, Weights
from diffusion_utils.data import sets, stanford_cars, to_float, to_uint8, toy_cars
from diffusion_utils.data.captions import captions, colours
from diffusion_utils.evaluation import Reference, features, reconstruction_quality
from diffusion_utils.evaluation.attributes import FeatureReader, accuracy, every_kind, train_reader
from diffusion_utils.networks.blocks import ResBlock
from diffusion_utils.pipeline import AS_ADVISED, DEFAULT, UNCONDITIONAL, Drawing, Pipeline

SHIFT = {"time_shift": 30}
LATE = {"interval": [400, 999]}
SMALLER = {"guide": "stanford-cars-resnet", "guide_conditional": False}
VIVID = ("red", "orange", "yellow", "green", "blue")  # the others run into each other, in photographs, too


def skipping(scale: float, *layers: str, **more) -> dict:
    return {**SHIFT, "guidance_scale": scale, "skip_layers": list(layers), **more}


# What differs from plain DPM-Solver++ with 20 steps (`DEFAULT`).
GUIDANCE = {
    "plain": {},
    "time shift": SHIFT,
    "classifier-free, w = 2": {**SHIFT, "guidance_scale": 2},
    "classifier-free, w = 4": {**SHIFT, "guidance_scale": 4},
    "without encoder.7, w = 1.5": skipping(1.5, "encoder.7"),
    "without encoder.7, w = 2": skipping(2, "encoder.7"),
    "without encoder.7, w = 2.5": skipping(2.5, "encoder.7"),
    "without encoder.7, w = 3": skipping(3, "encoder.7"),
    "without encoder.7, w = 4": skipping(4, "encoder.7"),
    "without encoder.7, w = 3, no time shift": skipping(3, "encoder.7", time_shift=0),
    "without encoder.7, w = 3, t ≥ 400 only": skipping(3, "encoder.7", **LATE),
    "without encoder.7, w = 3, t in 200 … 800": skipping(3, "encoder.7", interval=[200, 800]),
    "without encoder.7, w = 3, linspace": skipping(3, "encoder.7", timestep_spacing="linspace"),
    "without encoder.7, w = 2, rescaled": skipping(2, "encoder.7", guidance_rescale=1),
    "without encoder.7, w = 3, rescaled": skipping(3, "encoder.7", guidance_rescale=1),
    "without encoder.4, w = 2": skipping(2, "encoder.4"),
    "without decoder.1, w = 2": skipping(2, "decoder.1"),
    "without attention at 8×8, w = 2": skipping(2, "encoder.5", "decoder.2"),
    "without attention at 4×4, w = 2": skipping(2, "encoder.8"),
    # A smaller network that learnt less, without conditions, as in autoguidance.
    "away from stanford-cars-resnet, w = 2": {**SHIFT, **SMALLER, "guidance_scale": 2},
    "away from stanford-cars-resnet, w = 3, t ≥ 400 only": {**SHIFT, **SMALLER, **LATE, "guidance_scale": 3},
}
AUTOGUIDANCE = {
    "an earlier self, w = 2": {**SHIFT, "guidance_scale": 2},
    "an earlier self, w = 3, t ≥ 400 only": {**SHIFT, **LATE, "guidance_scale": 3},
}
SAMPLERS = ("ddpm", "ddim", "dpm_solver_pp")
STEPS = (5, 10, 20, 50, 100)
TOY_PROMPTS = {f"w = {scale:g}": {"guidance_scale": scale} for scale in (0, 1, 1.5, 2, 3, 4, 6, 8)}
TOY_PROMPTS["w = 8, t ≥ 400 only"] = {"guidance_scale": 8, **LATE}
PROMPTS = {
    "not guided": SHIFT,
    **{f"classifier-free, w = {scale:g}": {**SHIFT, "guidance_scale": scale} for scale in (2, 4)},
    "without encoder.7, w = 3": skipping(3, "net.encoder.7"),
}
for scale in (2, 3, 4):
    way = f"without encoder.7 and caption, w = {scale}"
    PROMPTS[way] = skipping(scale, "net.encoder.7", guide_conditional=False)
MIDDLE = {"guidance_scale": 3, "guide_conditional": False, "skip_layers": "middle"}  # see `middle`
LATENT = {
    "not guided": {},
    "not guided, time shift 30": SHIFT,
    "classifier-free, w = 2": {"guidance_scale": 2},
    "classifier-free, w = 4": {"guidance_scale": 4},
    "without middle and caption, w = 3": MIDDLE,
    "without middle and caption, w = 3, time shift 30": {**MIDDLE, **SHIFT},
}


def undirected(weights: str) -> Pipeline:
    """Weights that draw as `DEFAULT` says, whatever their card advises."""
    return replace(pipeline.load(weights), drawing=DEFAULT)


def settled(pipe: Pipeline, condition: str | None = None, **way) -> dict:
    """How pictures are drawn, complete; of a guide's path, the end."""
    drawing = asdict(pipe.settled(condition, **way))
    guide = None if drawing["guide"] in (None, "none") else "/".join(Path(drawing["guide"]).parts[-3:])
    return {**drawing, "guide": guide}


def against_held_out(data: str, size: int, part: sets.Part) -> Callable[[Tensor], dict]:
    """A function that compares drawn pictures with some of those kept out of training."""
    real = sets.load(data, size)
    reference = Reference(real.images, real.part(part))
    return lambda pictures: {"data": real.description, **reference.evaluate(pictures, copies=part == "test")}


@dataclass
class Against:
    """Options of the questions that compare with the held-out pictures."""

    weights: Weights = "stanford-cars-1m"
    data: str = "stanford_cars"  # What the weights were trained on: toy_cars, stanford_cars, or a folder.
    # Which held-out pictures: those of "validation" to choose by, those of "test" to report.
    part: sets.Part = "test"
    count: int = 788  # How many pictures to draw: of Stanford Cars as many as two test parts hold.
    results: Path = RESULTS  # The folder of the results.


@dataclass
class Guidance(Against):
    """What guidance buys, and which worse guess to walk away from: KID of the same seeds, drawn in many ways.

    With --guide the ways of autoguidance are measured, too.  Writes benchmarks/results/guidance-NAME.json.
    """

    guide: str | None = None  # Weights of a weaker network, for autoguidance.
    only: tuple[str, ...] = ()  # Names of some ways of drawing; default: all.

    def __call__(self) -> None:
        pipe, name = undirected(self.weights), name_of(self.weights)
        autoguidance = {way: {**how, "guide": self.guide} for way, how in AUTOGUIDANCE.items() if self.guide}
        results = Results(self.results / f"guidance-{name}.json")
        prepare = cache(partial(against_held_out, self.data, pipe.size, self.part))
        ways = GUIDANCE | autoguidance
        for way in chosen("way of drawing", self.only, ways):
            how = ways[way]
            settings = {"way": way, "weights": name, "images_seen": pipe.card["images_seen"]}
            settings |= {**settled(pipe, **how), "count": self.count, "part": self.part}
            measure(results, way, settings, partial(pipe, range(self.count), **how), prepare)


@dataclass
class Samplers(Against):
    """Steps against quality for every sampler, with shipped weights.

    Writes benchmarks/results/samplers-NAME.json.
    """

    weights: Weights = "cars32-none-sample"

    def __call__(self) -> None:
        pipe, name = undirected(self.weights), name_of(self.weights)
        results = Results(self.results / f"samplers-{name}.json")
        prepare = cache(partial(against_held_out, self.data, pipe.size, self.part))
        for steps in STEPS:
            for sampler in SAMPLERS:
                how = {"sampler": sampler, "steps": steps}
                settings = {"weights": name, **how, "sample_seeds": f"0 … {self.count - 1}", "part": self.part}
                draw = partial(pipe, range(self.count), UNCONDITIONAL, **how)
                measure(results, f"{sampler}, {steps} steps", settings, draw, prepare, size=pipe.size)


def rounded(shares: dict[str, float]) -> dict[str, float]:
    return {name: round(share, 4) for name, share in shares.items()}


def toy_prompts(size: int, times: int) -> tuple[list[str], dict, Callable[[Tensor], dict]]:
    """Prompts, what real pictures score, and a function that scores drawn ones."""
    reader = train_reader(toy_cars.load(4096, size, seed=1))  # every kind, and no picture of the denoiser's
    real = toy_cars.load(1024, size, seed=2)
    kinds = [every_kind(held_out) for held_out in (False, True)]
    texts = [text for prompts, _ in kinds for text in prompts * times]
    asked = [labels.repeat(times, 1) for _, labels in kinds]

    def score(pictures: Tensor) -> dict:
        seen, held_out = reader.read(pictures).split([len(labels) for labels in asked])
        return {"seen": rounded(accuracy(seen, asked[0])), "held_out": rounded(accuracy(held_out, asked[1]))}

    return texts, rounded(accuracy(reader.read(real.images), real.labels)), score


def photograph_prompts(
    size: int, part: sets.Part, count: int | None
) -> tuple[list[str], dict, Callable[[Tensor], dict]]:
    """As `toy_prompts`, for the first photographs of a held-out part."""
    cars = stanford_cars.load(size=size)
    train, held_out = cars.part(held_out=False), cars.part(held_out=True).half(test=part == "test")
    reference = Reference(train.images, held_out.images)
    reader = FeatureReader(reference.seen_features, train.body_types().repeat(2))  # mirrored ones, too
    texts = [variants[0] for variants in captions(held_out)][:count]
    bodies, paints = held_out.body_types()[:count], colours(held_out.images)[:count]
    vivid = torch.tensor([paint in VIVID for paint in paints])

    def shares(pictures: Tensor) -> dict:
        colour = torch.tensor([a == b for a, b in zip(colours(pictures), paints)])
        body = reader.read(features.features(pictures)) == bodies
        right = {"colour": colour, "vivid colour": colour[vivid], "body": body, "all": colour & body}
        return rounded({name: part.double().mean().item() for name, part in right.items()})

    def score(pictures: Tensor) -> dict:
        return {**shares(pictures), **reference.evaluate(pictures)}

    return texts, shares(held_out.images[:count]), score


def card_with_prompts(weights: str) -> dict:
    card = pretrained.card(weights)
    if "prompts" not in card:
        raise ValueError(f"{weights} takes no prompts: train some with --condition caption")
    return card


def cost(weights: str) -> dict:
    """What a network is, and what its training took; its autoencoder's, where it has one."""
    card, encoder = pretrained.card(weights), pretrained.load(weights).autoencoder
    facts = {"parameters": card["parameters"], "macs": card["macs"], "seconds_of_training": card["seconds"]}
    if encoder is None:
        return facts
    shape = encoder.latent_shape(card["size"], card["size"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.decode(torch.zeros(1, *shape))
    facts |= dict(
        latent=list(shape), autoencoders_seconds=pretrained.card(pretrained.autoencoder_of(weights))["seconds"]
    )
    facts["decoders_parameters"] = networks.count_parameters(encoder.decoder)
    return facts | {"decoders_macs": counter.get_total_flops() // 2}


def measure_prompts(
    results: Results,
    weights: str,
    ways: dict[str, dict],
    part: dict,
    texts: list[str],
    real: dict,
    score: Callable[[Tensor], dict],
) -> None:
    """In every way, one picture for each text, its seed being its place in the list; `part`: whose texts, if any's."""
    pipe, facts = undirected(weights), cost(weights)
    for way, how in ways.items():
        if how.get("skip_layers") == "middle":
            how = {**how, "skip_layers": middle(pipe.denoiser.net)}
        settings = {"way": way, "weights": name_of(weights), "images_seen": pipe.card["images_seen"]}
        settings |= {**settled(pipe, **how), "count": len(texts), **part}
        draw = partial(pipe, range(len(texts)), prompt=texts, **how)
        measure(results, f"{settings['weights']}, {way}", settings, draw, lambda: score, **facts, real=real)


def middle(net: nn.Module) -> list[str]:
    """The name of the last residual block before the picture is enlarged again."""
    blocks = [name for name, part in net.named_modules() if ".encoder." in name and isinstance(part, ResBlock)]
    if not blocks:
        raise ValueError(
            "a network without residual blocks cannot be drawn with without its middle: choose ways with --only"
        )
    return blocks[-1:]


@dataclass
class Prompts:
    """Do pictures show what their prompts ask for?  Prompt accuracy per guidance scale.

    Toy cars: every one of the 288 kinds, the same number of times; body, colour, direction and time are
    read back by a classifier that is trained on real toy cars first, and whose own accuracy comes first.  Kinds
    that training never showed are counted apart.

    Stanford Cars: the captions of the held-out photographs.  The colour is measured from the pixels, as for
    the captions, and the body type is read from features by a linear map fitted to the training
    photographs; what the photographs themselves score comes first.  KID says what guidance does to quality.

    Writes benchmarks/results/prompts-NAME.json.
    """

    weights: Weights
    times: int = 2  # Toy cars: pictures of each kind.
    part: sets.Part = "test"  # Stanford Cars: whose captions, those of "validation" to choose by.
    count: int | None = None  # Stanford Cars: how many of them; default: all.
    only: tuple[str, ...] = ()  # Names of some ways of drawing; default: all.
    results: Path = RESULTS  # The folder of the results.

    def __call__(self) -> None:
        card = card_with_prompts(self.weights)
        toy = card["data"].startswith("toy cars")
        ways = TOY_PROMPTS if toy else PROMPTS
        ways = {way: ways[way] for way in chosen("way of drawing", self.only, ways)}
        if toy:
            part, prompts = {}, toy_prompts(card["size"], self.times)
        else:
            part, prompts = {"part": self.part}, photograph_prompts(card["size"], self.part, self.count)
        print(f"real pictures: {prompts[1]}")
        results = Results(self.results / f"prompts-{name_of(self.weights)}.json")
        measure_prompts(results, self.weights, ways, part, *prompts)


@dataclass
class Latent:
    """Is it worth drawing latents instead of pixels?  What an autoencoder loses, and what the rest costs.

    First the autoencoders alone: what they keep of the test photographs (PSNR, SSIM), and the KID of as
    many training photographs that went through them, which no network that draws their latents can be
    expected to beat.  Then every network: a picture for the caption of each held-out photograph, in
    several ways (as `prompts` does), and what its training took, the autoencoder's included.  How long 16 cars
    take is measured by `speed.py latent`.  Writes benchmarks/results/latent.json.
    """

    # Of networks that take captions: names or paths; a folder means the weights.safetensors in it.
    weights: tyro.conf.Positional[tuple[str, ...]] = ()
    # Weights of autoencoders, which are measured alone.
    autoencoders: tuple[str, ...] = tuple(name for name in pretrained.names() if "autoencoder" in name)
    only: tuple[str, ...] = ()  # Names of some ways of drawing; default: all.
    # Which held-out photographs and their captions, those of "validation" to choose by, those of "test" to report.
    part: sets.Part = "test"
    count: int | None = None  # How many captions; default: all.
    results: Path = RESULTS  # The folder of the results.

    def __call__(self) -> None:
        paths, encoders = by_name(self.weights).values(), by_name(self.autoencoders)
        size = [card["size"] for card in (*map(card_with_prompts, paths), *map(pretrained.card, encoders.values()))][0]
        ways = {way: LATENT[way] for way in chosen("way of drawing", self.only, LATENT)}
        results = Results(self.results / "latent.json", {"autoencoders": {}, "networks": []}, "networks")
        for name, path in encoders.items():
            self.measure_autoencoder(results, name, path, size)
        if not paths:
            return
        prompts = photograph_prompts(size, self.part, self.count)
        for path in paths:
            measure_prompts(results, path, ways, {"part": self.part}, *prompts)

    def measure_autoencoder(self, results: Results, name: str, path: str, size: int) -> None:
        """What of photographs does not come back."""
        settings = {"images_seen": pretrained.card(path)["images_seen"], "part": self.part}
        place = "autoencoders" if self.part == "test" else "on_validation"
        rows = results.document.get(place, {})
        if any(rows.get(name, {}).get(key) != value for key, value in settings.items()):
            encoder, cars = pretrained.load_autoencoder(path), sets.load("stanford_cars", size)
            train, held_out = cars.images, cars.part(self.part)
            sources = train[torch.linspace(0, len(train) - 1, len(held_out)).round().long()]
            again = to_uint8(encoder.from_latents(encoder.to_latents(to_float(sources))))
            scores = reconstruction_quality(encoder, held_out)
            scores |= Reference(train, held_out).evaluate(again, copies=False)
            results.read()
            rows = results.document.setdefault(place, {})
            rows[name] = {"latent": list(encoder.latent_shape(size, size)), **settings, **scores}
            rows[name] |= pretrained.machine()
            results.write()
        row = rows[name]
        kid = 1000 * row["generated"]["kid"]
        print(f"{name}: {row['psnr']} dB, SSIM {row['ssim']}, KID × 1000 {kid:.1f}", flush=True)


def snapshots(folder: Path, only: tuple[int, ...]) -> list[Path]:
    """The run's snapshots in the order of training."""
    found = sorted((folder / "snapshots").glob("weights_*.safetensors"))
    wanted = [path for path in found if not only or int(path.stem.split("_")[1]) in only]
    if not wanted:
        raise ValueError(f"{folder} has no such snapshots: train with --snapshot-images, or name others in --only")
    return wanted


def ship(name: str, path: Path, row: dict, guide: str | None) -> Path:
    """Put a measured snapshot, in half precision, among the weights that come with the package."""
    advice = {key: row[key] for key in asdict(DEFAULT) if row.get(key) is not None}
    measured = {key: row[key] for key in ("condition", "extractor", "counts", "generated", "floor")}
    if guide:
        advice["guide"] = f"{name}-guide"
        card = {**pretrained.card(guide), "about": f"guides {name}; from {row['guide']}"}
        pretrained.save(pretrained.FOLDER / f"{name}-guide.safetensors", pretrained.load(guide), card)
    seeds = f"{row['seed']} … {row['seed'] + row['count'] - 1}"
    card = {**pretrained.card(path), "drawing": advice, "sample_seeds": seeds, **measured}
    pretrained.save(pretrained.FOLDER / f"{name}.safetensors", pretrained.load(path), card)
    return pretrained.FOLDER / f"{name}.safetensors"


@dataclass
class Curve:
    """Quality against images seen: draw from every snapshot of a run and compare with held-out cars.

    The run was trained with --snapshot-images.  Rows with other guidance can be added.  Writes
    benchmarks/results/curve-RUN.json.  With --ship the weights of one measured row go into the package under that
    name (and those of its guide beside them), with what was measured on their card and its way of drawing as the
    advice.
    """

    run: tyro.conf.Positional[Path]  # The run's folder.
    # These snapshots, by the number in their name: the pictures of this run alone, without those of what it began
    # with; default: all.
    only: tuple[int, ...] = ()
    drawing: Drawing = AS_ADVISED  # How to draw; what is left out is as the card advises.
    condition: str | None = None  # As for the command sample.
    seed: int = 0  # Of the first picture; the next has the next seed.
    part: sets.Part = "validation"  # Which held-out pictures to compare with: a snapshot is chosen by them.
    count: int = 788  # How many pictures to draw.
    results: Path = RESULTS  # The folder of the results.
    ship: str | None = None  # Put this one snapshot's weights into the package, under this name.
    device: str = DEVICE  # Where to draw, such as cpu or cuda.

    def __call__(self) -> None:
        results, paths = Results(self.results / f"curve-{self.run.name}.json"), snapshots(self.run, self.only)
        if self.ship and len(paths) != 1:
            raise ValueError("--ship takes one snapshot: name it in --only")
        size = pretrained.card(paths[0])["size"]
        prepare = cache(partial(against_held_out, "stanford_cars", size, self.part))
        for path in paths:
            pipe, how = pipeline.load(str(path), self.device), vars(self.drawing)
            settings = {"images_seen": pipe.card["images_seen"], **settled(pipe, self.condition, **how)}
            settings |= {"condition": self.condition, "seed": self.seed, "count": self.count, "part": self.part}
            if self.ship:
                if not (row := results.find(settings)):
                    raise ValueError(
                        f"{path} was not measured like that yet: run the same command without --ship first"
                    )
                print(ship(self.ship, path, row, settings["guide"] and pipe.settled(self.condition, **how).guide))
                continue
            errors = "held_out_error_of_x0_as_share_of_variance"
            facts = {"parameters": pipe.card["parameters"], "seconds_of_training": pipe.card["seconds"]}
            facts |= {errors: pipe.card[errors], "trained_on": pipe.card["machine"]}
            draw = partial(pipe, range(self.seed, self.seed + self.count), self.condition, **how)
            measure(results, f"{settings['images_seen']:,} images", settings, draw, prepare, **facts)


main = command(
    {question.__name__.lower(): question for question in (Guidance, Samplers, Prompts, Latent, Curve)}, __doc__
)

if __name__ == "__main__":
    main()
