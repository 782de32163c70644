"""What to expect of one's own pictures: how many it takes, and what it helps to begin with trained weights.

OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/own.py counts     # letters: 100, 1,000 and 10,000 of them
OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/own.py tuning     # from nothing, all weights, low-rank adapters

Minutes are minutes of one processor core.  They are turned into a number of pictures by timing a few steps first, so
that what else the machine does changes nothing.
"""

import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from common import RESULTS, Results, chosen, command
from matplotlib.figure import Figure
from torch import Tensor, nn

from diffusion_utils import pipeline, pretrained
from diffusion_utils.data import letters, stanford_cars, to_float, to_uint8
from diffusion_utils.evaluation import error_per_timestep
from diffusion_utils.evaluation.attributes import AttributeReader, train_reader
from diffusion_utils.evaluation.metrics import copy_rate, nearest
from diffusion_utils.guidance import Guided
from diffusion_utils.networks import count_parameters
from diffusion_utils.networks.presets import CARS_1M, LETTERS, TOY_TEXT
from diffusion_utils.plotting import strip
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import sample
from diffusion_utils.training import TrainConfig, train

TIMES = (99, 299, 499, 699, 899)
UNSEEN = 100_000  # from this number on letters are for measuring
EACH = 5  # letters of each class that are drawn, and read
NETWORKS = {"small": LETTERS, "large": TOY_TEXT}
BASE, MAKE = "stanford-cars-1m", "Jeep"
# By way of learning: does it begin with trained weights, the rank of its adapters, the learning rate.
WAYS = {"from nothing": (False, None, 2e-3), "all weights": (True, None, 1e-3), "adapters": (True, 4, 1e-2)}
COMMON = {"batch_size": 32, "warmup_steps": 20, "mixed_precision": "no", "compile": "no"}
MUON = {"optimizer": "muon", "learning_rate": 4e-3}
SHOWN = (0, 1, 4, 6, 10, 12, 15, 18, 22, 25)  # places of letters in the alphabet


def trained(config: TrainConfig, images: Tensor, cond: Tensor | None, start: nn.Module | None, minutes: float):
    """A denoiser after so many minutes of one core, and how many pictures that were."""
    steps = iter(train(replace(config, steps=12, log_every=4), images, cond=cond, start=start))
    next(steps)  # the first ones are slow
    began = time.process_time()
    next(steps), next(steps)
    rate = 8 * config.batch_size / (time.process_time() - began)
    *_, record = train(replace(config, images=round(60 * minutes * rate)), images, cond=cond, start=start)
    return record.denoiser, record.images


def errors(denoiser: Denoiser, images: Tensor, cond: Tensor | None = None) -> float:
    """The error of x̂₀ as a share of the pictures' variance, mean over `TIMES`."""
    found = error_per_timestep(denoiser, images, TIMES, cond=cond)
    return round(sum(found) / len(found), 4)


def one_hot(labels: Tensor) -> Tensor:
    return F.one_hot(labels, len(letters.LETTERS)).float()


@cache
def reader() -> AttributeReader:
    """Says which letter a picture of 32×32 shows; it has learnt from letters that no denoiser sees."""
    return train_reader(letters.load(8192, 32, seed=1), steps=600)


def readable(images: Tensor, labels: Tensor) -> float:
    """The share of pictures, uint8, that are read as the letters that they are to show."""
    small = F.interpolate(to_float(images), 32, mode="area")
    return round((reader().read(small)[:, 0] == labels).double().mean().item(), 4)


@torch.no_grad()
def alphabet(denoiser: Denoiser, size: int) -> tuple[Tensor, Tensor]:
    """Letters of every class, drawn, uint8, and which they are."""
    labels, drawn = torch.arange(len(letters.LETTERS)).repeat(EACH), []
    guided = Guided(denoiser, one_hot(labels), guidance_scale=2.0)
    for i in range(0, len(labels), 65):
        which = slice(i, i + 65)
        drawn.append(sample(guided.part(which), range(i, min(i + 65, len(labels))), (3, size, size), steps=20))
    return to_uint8(torch.cat(drawn)), labels


@dataclass
class Counts:
    """How many pictures does it take?  Two networks on 100, 1,000 and 10,000 letters, by class, for equal minutes.

    Measured are the errors on pictures that were learnt from and on others, how many drawn letters can be read, and
    how many are copies.  Writes benchmarks/results/own-counts.json, and a picture of letters that the small network
    draws beside the training pictures that are nearest to them.
    """

    counts: tuple[int, ...] = (100, 1000, 10_000)
    minutes: float = 1.25  # Of one core, for each network.
    size: int = 32
    results: Path = RESULTS  # The folder of the results.
    picture: Path = Path("images/letters_by_count.png")  # What is drawn.
    runs: Path = Path("runs/own")  # The folder of the weights.

    def __call__(self) -> None:
        results, rows = Results(self.results / "own-counts.json"), {}
        unseen, labels = letters.load(260, self.size, start=UNSEEN)
        for count in self.counts:
            known = letters.load(count, self.size)
            for name, network in NETWORKS.items():
                settings = {"network": name, "count": count, "minutes": self.minutes, "size": self.size}
                path = self.runs / f"letters-{count}-{name}.safetensors"
                if not (path.exists() and results.find(settings)):
                    config = TrainConfig({**network, "cond_dim": 26}, flip=False, **MUON, **COMMON)
                    denoiser, seen = trained(config, known.images, one_hot(known.labels), None, self.minutes)
                    keep(path, denoiser, config, self.size)
                    pictures, asked = alphabet(denoiser, self.size)
                    scores = {
                        "error_known": errors(denoiser, known.images[:260], one_hot(known.labels[:260])),
                        "error_unseen": errors(denoiser, unseen, one_hot(labels)),
                        "readable": readable(pictures, asked),
                        "copies": copy_rate(pictures, known.images)[0],
                        "real_readable": readable(unseen, labels),
                        "real_copies": copy_rate(unseen, known.images)[0],
                    }
                    facts = {"parameters": count_parameters(denoiser.net), "images_seen": seen}
                    scores = {name: round(score, 4) for name, score in scores.items()}
                    results.add({**settings, **facts, **scores, **pretrained.machine()})
                print(results.find(settings), flush=True)
            path = self.runs / f"letters-{count}-small.safetensors"
            drawn = some_letters(pretrained.load(path), self.size)
            rows |= {f"learnt from {count:,}": drawn}
            rows |= {f"nearest of {count:,}": known.images[nearest(drawn, known.images, 2)[1][:, 0]]}
        columns = [letters.LETTERS[i] for i in SHOWN]
        save(strip([*rows.values()], columns, [*rows], aspect=1, width=6.5), self.picture)


@torch.no_grad()
def some_letters(denoiser: Denoiser, size: int) -> Tensor:
    """The letters `SHOWN`, drawn, uint8; the noise of each is that of its place, 0, 1, …"""
    guided = Guided(denoiser, one_hot(torch.tensor(SHOWN)), guidance_scale=2.0)
    return to_uint8(sample(guided, range(len(SHOWN)), (3, size, size), steps=20))


@dataclass
class Tuning:
    """What does it help to begin with trained weights?  300 letters, and one make of Stanford Cars, from nothing,
    with all weights of stanford-cars-1m, and by low-rank adapters, for equal minutes.

    Measured are the errors on pictures not learnt from and, on other cars, what has been forgotten.  Writes
    benchmarks/results/own-tuning.json, and pictures of what is drawn.
    """

    minutes: float = 0.6  # Of one core, for each network.
    count: int = 300  # Letters to learn from.
    data: tuple[str, ...] = ("letters", "cars")  # Which of the two.
    ways: tuple[str, ...] = tuple(WAYS)  # How it is learnt.
    results: Path = RESULTS  # The folder of the results.
    pictures: Path = Path("images")  # The folder of the pictures, fine_tuning_letters.png and fine_tuning_cars.png.
    runs: Path = Path("runs/own")  # The folder of the weights.

    def __call__(self) -> None:
        results = Results(self.results / "own-tuning.json")
        known, unseen = letters.load(self.count, 64), letters.load(260, 64, start=UNSEEN)
        given = {"letters": (known.images, one_hot(known.labels), unseen.images, one_hot(unseen.labels))}
        photos = stanford_cars.load(size=64)
        others = photos.part(held_out=True).half(test=True).images[:128]
        given["cars"] = of_make(photos)
        for name in chosen("pictures", self.data, given):
            (images, cond, *unseen), drawn = given[name], {}
            for way in chosen("way", self.ways, WAYS):
                settings = {"data": name, "way": way, "minutes": self.minutes, "count": len(images)}
                path = self.runs / f"{name}-{way.replace(' ', '-')}.safetensors"
                if not (path.exists() and results.find(settings)):
                    row = self._learn(way, images, cond, path)
                    denoiser = pretrained.load(path)
                    row |= {"error_unseen": errors(denoiser, *unseen), "error_cars": errors(denoiser, others)}
                    results.add({**settings, **row, **pretrained.machine()})
                print(results.find(settings), flush=True)
                drawn[way] = draw(name, path)
            columns = [letters.LETTERS[i] for i in SHOWN] if name == "letters" else [f"seed {i}" for i in range(8)]
            figure = strip([*drawn.values()], columns, [*drawn], aspect=1 if name == "letters" else 4 / 3, width=6.5)
            save(figure, self.pictures / f"fine_tuning_{name}.png")

    def _learn(self, way: str, images: Tensor, cond: Tensor | None, path: Path) -> dict:
        """Train, keep the weights, and say what it took."""
        begins, rank, rate = WAYS[way]
        network = CARS_1M if cond is None else {**CARS_1M, "cond_dim": cond.shape[1]}
        config = TrainConfig(network, lora=rank, learning_rate=rate, flip=cond is None, **COMMON)
        start = pretrained.load(BASE).net if begins else None
        denoiser, seen = trained(config, images, cond, start, self.minutes)
        keep(path, denoiser, config, 64)
        return {"images_seen": seen, "bytes": path.stat().st_size}


def of_make(photos: stanford_cars.CarPictures) -> tuple[Tensor, None, Tensor]:
    """Photographs of one make to learn from, their condition, and others of it."""
    ours = [i for i, label in enumerate(photos.labels.tolist()) if photos.classes[label].startswith(MAKE)]
    found = replace(
        photos, images=photos.images[ours], names=[photos.names[i] for i in ours], labels=photos.labels[ours]
    )
    return found.part(held_out=False).images, None, found.part(held_out=True).images


def draw(name: str, path: Path) -> Tensor:
    """What weights draw: some letters, or cars as the weights that they began with are best drawn with."""
    if name == "letters":
        return some_letters(pretrained.load(path), 64)
    pipe = pipeline.load(str(path))
    advice = pipeline.Drawing.from_card({"drawing": pretrained.card(BASE)["drawing"]})
    return replace(pipe, drawing=advice)(range(8))


def keep(path: Path, denoiser: Denoiser, config: TrainConfig, size: int) -> None:
    """Write weights, or adapters, with a card."""
    about = {name: getattr(config, name) for name in pretrained.NEEDED} | {"size": size}
    about |= {"lora": pretrained.lora_entry(BASE, config.lora)} if config.lora else {}
    pretrained.save(path, denoiser, about)


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    print(f"{path}: {path.stat().st_size // 1024} KiB")


main = command({"counts": Counts, "tuning": Tuning}, __doc__)

if __name__ == "__main__":
    main()
