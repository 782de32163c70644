"""All that a GPU is wanted for, one item after the other, in calls of a few minutes.

    python benchmarks/gpu.py --minutes 9            # again and again, until it says that all is done
    python benchmarks/gpu.py --pack cars.npz        # where the photographs are: 64-pixel crops in one file
    python benchmarks/gpu.py --minutes 9 --pictures cars.npz        # where they are not
    python benchmarks/gpu.py --tiny                 # the same on a CPU, in a minute, with toy cars

Every item is a command of this project with options that are given below; a training that the budget cuts off goes
on with the next call.  What is done is noted in OUT/done.json, and left alone from then on.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import peers
import torch
from common import command
from speed import NETWORKS

from diffusion_utils import commands, networks
from diffusion_utils.commands.sample import DEVICE
from diffusion_utils.data import stanford_cars, toy_cars
from diffusion_utils.files import write_atomically, write_json
from diffusion_utils.networks.presets import CARS, CARS_1M
from diffusion_utils.pretrained import machine
from diffusion_utils.training import TrainConfig, train

SIZE = 64
# Of the form of the headline network, by millions of parameters.
CHANNELS = {"0.25": [16, 32, 40, 40], "0.5": [24, 48, 56, 64], "2": [48, 88, 112, 136], "4": [64, 128, 160, 192]}
SEGNET = {**NETWORKS["segnet"], "channels": [32, 72, 160]}
SMALL = {"name": "resnet", "channels": [8, 8], "stem": 1, "embedding_dim": 8, "attention": [2]}  # for --tiny
LATENTS = ["--condition", "caption", "--autoencoder", "stanford-cars-autoencoder-4"]


@dataclass
class Gpu:
    minutes: float = 9  # Of this call; with --tiny: no limit.
    out: Path | None = None  # Folder of the results; default: runs/gpu, with --tiny a temporary one.
    weights: str = "stanford-cars-1m"  # What the headline network goes on from, a name or a path.
    images: int = 8_000_000  # Pictures that each training sees.
    batch_size: int = 512  # Of the trainings: what throughput says is best.
    peer_minutes: float = 8  # Of training, for each peer.
    pack: Path | None = None  # Only write the photographs' crops to this file.
    pictures: Path | None = None  # Take the photographs from such a file.
    tiny: bool = False  # Try everything with toy cars, small networks and a few steps.

    def __call__(self) -> None:
        if self.pack:
            return pack(self.pack)
        if self.tiny:
            small = {"images": 64, "batch_size": 8, "peer_minutes": 0.01, "minutes": 60}
            self = replace(self, **small, out=self.out or Path(tempfile.mkdtemp()))
        self.out = self.out or Path("runs/gpu")
        cars = toys() if self.tiny else unpack(self.pictures) if self.pictures else None
        with cars_from(cars):
            self.work(time.monotonic() + 60 * self.minutes)

    def work(self, deadline: float) -> None:
        """Do what is left until then; a training is stopped as by SIGTERM, which it saves itself at."""
        noted = self.out / "done.json"
        done = json.loads(noted.read_bytes()) if noted.exists() else {}
        alarm = threading.Timer(max(0.0, deadline - time.monotonic()), os.kill, (os.getpid(), signal.SIGTERM))
        alarm.daemon = True
        alarm.start()
        try:
            for name, (item, seconds) in self.items().items():
                if name in done:
                    continue
                if time.monotonic() + seconds > deadline:
                    return print(f"the time is used before {name}: the same command goes on")
                print(f"{name}:", flush=True)
                if (result := item()) is None:
                    return print(f"{name} was stopped: the same command goes on")
                done[name] = {**machine(), **result}
                write_json(noted, done)
        finally:
            alarm.cancel()
        print(f"all is done: see {self.out}")

    def items(self) -> dict[str, tuple[Callable[[], dict | None], float]]:
        """By name what does it, and the least seconds that must be left: a training can be cut off, others not."""
        runs = {
            "headline": [] if self.tiny else ["--start", self.weights],
            "resnet": ["--network", CARS],
            "segnet": ["--network", SEGNET],
            "failing": ["--network", CARS, "--prediction-type", "epsilon"],
            **{f"size-{name}": ["--network", {**CARS_1M, "channels": c}] for name, c in CHANNELS.items()},
            "text": ["--condition", "caption"],
            "latents": LATENTS,
            "student": ["--objective", "consistency", "--start", str(self.out / "headline" / "weights.safetensors")],
        }
        runs["headline"] += ["--decay-fraction", "1", "--snapshot-images", self.images // 8]
        trainings = {name: (partial(self.train, name, options), 10.0) for name, options in runs.items()}
        names = ["ours"] if self.tiny else list(peers.PEERS)
        compared = {
            f"peer {n}": (partial(self.peer, n), 0 if self.tiny else 60 * self.peer_minutes + 60) for n in names
        }
        first = {name: trainings.pop(name) for name in ("headline", "resnet", "segnet", "failing")}
        return {"throughput": (self.throughput, 60.0)} | first | compared | trainings

    def train(self, name: str, options: list) -> dict | None:
        """A run of `python -m diffusion_utils train`; None: it was stopped."""
        folder = self.out / name
        if self.tiny and "--start" not in options:
            options = [option for option in options if not isinstance(option, dict) and option != "--network"]
            options += ["--network", SMALL, "--size", 16]
        if (folder / "run.json").exists():
            options = ["--resume"]
        else:
            options = [*options, "--data", "stanford_cars", "--batch-size", self.batch_size, "--sample-every", 0]
            options += (
                ["--optimizer", "muon", "--images", self.images] if name != "student" else ["--images", self.images]
            )
        texts = [json.dumps(option) if isinstance(option, dict) else str(option) for option in options]
        if commands.main(["train", "--out", str(folder), *texts]):
            sys.exit(1)  # it has said what is wrong
        return {"run": str(folder)} if (folder / "weights.safetensors").exists() else None

    def throughput(self) -> dict:
        """Pictures a second of the headline network, by batch size, not compiled and compiled."""
        rates, steps = {}, 2 if self.tiny else 30
        cars = torch.randint(256, (1024, 3, SIZE, SIZE), dtype=torch.uint8)  # what they show costs nothing
        for batch in (4,) if self.tiny else (256, 512, 1024):
            for compiled in ("no",) if self.tiny else ("no", "yes"):
                config = TrainConfig(CARS_1M, steps=3 * steps, batch_size=batch, optimizer="muon", compile=compiled)
                *_, record = train(replace(config, log_every=steps), cars)
                rates[f"batch {batch}, compile {compiled}"] = round(record.images_per_second)
                print(f"batch {batch}, compile {compiled}: {record.images_per_second:.0f} images/s", flush=True)
        return {"parameters": networks.count_parameters(record.denoiser.net), "images_per_second": rates}

    def peer(self, name: str) -> dict:
        """One of `benchmarks/peers.py`, in this process."""
        size, count = (16, 8) if self.tiny else (SIZE, 2048)
        results = self.out / f"peers-{size}.json"
        peers.Peers((name,), size, self.peer_minutes, count, DEVICE, results, one=True)()
        return {"results": str(results)}


def pack(path: Path) -> None:
    """Write the crops of the photographs with their file names and classes, as a compressed npz."""
    cars = stanford_cars.load(size=SIZE)
    parts = {"images": cars.images.numpy(), "labels": cars.labels.numpy(), "names": cars.names, "classes": cars.classes}

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **parts)

    write_atomically(path, write)
    print(f"{path}: {len(cars.images)} cars, {path.stat().st_size / 2**20:.0f} MiB")


def unpack(path: Path) -> stanford_cars.CarPictures:
    """What `pack` wrote.

    Raises:
        ValueError: something else.
    """
    try:
        with np.load(path, allow_pickle=False) as parts:
            images, labels = (torch.from_numpy(parts[name]) for name in ("images", "labels"))
            names, classes = (parts[name].tolist() for name in ("names", "classes"))
    except (KeyError, ValueError, EOFError, AttributeError):
        raise ValueError(f"{path} holds no packed cars: write it with --pack where the photographs are") from None
    return stanford_cars.CarPictures(images, names, labels, classes, [])


def toys() -> stanford_cars.CarPictures:
    """Forty toy cars, in the place of the photographs."""
    names, classes = [f"{i:05}.jpg" for i in range(40)], ["AM General Hummer SUV 2000", "BMW M3 Coupe 2012"]
    return stanford_cars.CarPictures(toy_cars.load(40, 16).images, names, torch.arange(40) % 2, classes, [])


@contextmanager
def cars_from(cars: stanford_cars.CarPictures | None) -> Iterator[None]:
    """Within, Stanford Cars are these pictures, of one size; None: as ever."""
    load = stanford_cars.load

    def packed(size: int) -> stanford_cars.CarPictures:
        if size != cars.images.shape[-1]:
            raise ValueError(f"the packed cars have {cars.images.shape[-1]} pixels a side, not {size}")
        return cars

    stanford_cars.load = load if cars is None else packed
    try:
        yield
    finally:
        stanford_cars.load = load


main = command(Gpu, __doc__)

if __name__ == "__main__":
    main()
