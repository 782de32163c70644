"""When does a network begin to copy?  The same training on few toy cars and on many.

OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/copying.py            # a quarter of an hour on one core
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import torch
from common import RESULTS, Results, command
from ladder import facts, trained
from torch import Tensor

from diffusion_utils import pretrained
from diffusion_utils.data import to_float, toy_cars
from diffusion_utils.evaluation import error_per_timestep
from diffusion_utils.evaluation.metrics import copy_rate, nearest
from diffusion_utils.ideal import likeness
from diffusion_utils.plotting import strip
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import sample
from diffusion_utils.training import TrainConfig

TIMESTEPS = (99, 299, 499, 699, 899)
SIZE, SHOWN = 16, 5  # pixels a side; cars of the picture
HELD_OUT = 1_000_000  # where the held-out cars begin, far behind those of either half
# No attention: convolutions alone, as the ideal denoisers of patches.  Mirrored pictures would make the sets larger.
NETWORK = {"name": "resnet", "channels": [32, 64], "decoder_depth": 1, "stem": 2, "embedding_dim": 64, "skip": "add"}
TRAINING = {"network": NETWORK, "batch_size": 32, "optimizer": "muon", "warmup_steps": 100, "flip": False}
TRAINING |= {"ema_decay": 0.99, "log_every": 50}


@dataclass
class Copying:
    """When does a network begin to copy (Kadkhodaie et al. 2024, 2310.02557)?

    The same small network learns 8, 64, 512 and 4,096 toy cars of 16×16 pixels, for equally many steps, and each time
    twice: from two sets without a car in common, and from other initial weights.  Measured are the share of its
    drawings that copy a car of its set, the error of x̂₀ on that set and on held-out cars, and how alike the drawings
    of the two halves are that begin with the same noise.  Beside each its floor: how many held-out cars pass for
    copies, and how alike drawings from different noises are.  Writes benchmarks/results/copying.json and a picture of
    seeds 0 to 4.
    """

    sizes: tuple[int, ...] = (8, 64, 512, 4096)  # How many cars each of the two halves has.
    steps: int = 1500  # Of every training.
    count: int = 256  # Pictures to measure with, drawn and held-out ones.
    results: Path = RESULTS  # The folder of the results.
    picture: Path = Path("images/copying.png")  # What the two halves draw.
    runs: Path = Path("runs/copying")  # The folder of the weights.

    def __call__(self) -> None:
        results, rows, labels = Results(self.results / "copying.json"), [], []
        held_out = toy_cars.load(self.count, SIZE, start=HELD_OUT).images
        for size in self.sizes:
            sets = [toy_cars.load(size, SIZE, start=half * max(self.sizes)).images for half in (0, 1)]
            halves = [self.network(images, half) for half, images in enumerate(sets)]
            drawn = [sample(each, range(self.count), (3, SIZE, SIZE), "ddim", 20) for each in halves]
            settings = {"cars": size, "steps": self.steps, "count": self.count, "size": SIZE}
            if not results.find(settings):
                results.add({**settings, **compare(halves, sets, drawn, held_out), **pretrained.machine()})
            print(results.find(settings), flush=True)
            rows += [each[:SHOWN] for each in drawn]
            labels += [f"{size:,} cars, one half", "the other half"]
        self.picture.parent.mkdir(parents=True, exist_ok=True)
        figure = strip(rows, [f"seed {i}" for i in range(SHOWN)], labels, width=4.5)
        figure.savefig(self.picture, metadata={"Software": None})

    def network(self, images: Tensor, half: int) -> Denoiser:
        """The network that has learnt one half, out of its file where that training is done."""
        path = self.runs / f"{len(images)}-{half}.safetensors"
        config = TrainConfig(**TRAINING, steps=self.steps, seed=half)
        if not path.exists() or pretrained.card(path)["config"] != asdict(config):
            record = trained(config, images, f"{len(images)} cars, half {half}")
            card = {name: getattr(config, name) for name in pretrained.NEEDED} | {
                "size": SIZE,
                "config": asdict(config),
            }
            pretrained.save(path, record.denoiser, card | facts(record, SIZE), dtype=torch.float32)
        return pretrained.load(path)


def compare(halves: list[Denoiser], sets: list[Tensor], drawn: list[Tensor], held_out: Tensor) -> dict:
    """Two networks, what they learnt from, what they drew from the same noises: means over both."""
    real = to_float(held_out)
    row = {key: [] for key in ("copies", "held_out_copies", "distance", "held_out_distance", "error", "held_out_error")}
    for denoiser, images, pictures in zip(halves, sets, drawn):
        known = to_float(images)
        for kind, which, photographs in (("", pictures, images[: len(real)]), ("held_out_", real, held_out)):
            row[f"{kind}copies"].append(copy_rate(which, known)[0])
            row[f"{kind}distance"].append(nearest(which, known, 1)[0].mean().item() / known[0].numel() ** 0.5)
            row[f"{kind}error"].append(mean(error_per_timestep(denoiser, photographs, TIMESTEPS)))
    about = real.mean(0)
    row = {key: round(mean(values), 4) for key, values in row.items()}
    row["likeness"] = round(likeness(*drawn, about), 4)
    row["other_noise_likeness"] = round(likeness(drawn[0], drawn[1].roll(1, 0), about), 4)
    return row


main = command(Copying, __doc__)

if __name__ == "__main__":
    main()
