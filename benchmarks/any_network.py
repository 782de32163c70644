"""Any network will do: six networks of one size, after equal minutes of a processor and after equal work.

STANFORD_CARS_ROOT=… OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/any_network.py
STANFORD_CARS_ROOT=… OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/any_network.py --budget macs
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from common import RESULTS, Results, chosen, command
from ladder import BASE, ERRORS, SEGNET, UNET, errors, facts, trained
from torch import Tensor

from diffusion_utils import networks, pretrained
from diffusion_utils.data import root_mean_square, sets, to_float
from diffusion_utils.evaluation import features, metrics, reach
from diffusion_utils.networks.presets import TOY_TEXT
from diffusion_utils.plotting import strip
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import sample
from diffusion_utils.training import TrainConfig, train

SIZE, BATCH, SAMPLER, STEPS = 32, 32, "dpm_solver_pp", 20
TIMESTEPS, REACHES = (99, 299, 499, 699, 899), (99, 499, 899)
PIXELS = 512  # whose gradients are taken, one in each picture
SHOWN = 8  # cars of the picture
RESNET = {**BASE, "upsample": "nearest", "attention": [2]}  # the best of notebook 5's ladder
DIT, MIXER = {"name": "dit"}, {"name": "mixer"}  # both about 0.6 million parameters as they come
NETWORKS = {
    "resnet": ("ResNet, attention at 16×16", RESNET),
    "skips": ("ResNet, skips, attention at 8×8", TOY_TEXT),
    "segnet": ("SegNet", SEGNET),
    "unet": ("U-Net", UNET),
    "dit": ("DiT, 4×4 patches", DIT),
    "mixer": ("MLP-Mixer, 4×4 patches", MIXER),
    "dit-2": ("DiT, 2×2 patches", {**DIT, "patch": 2}),
    "dit-8": ("DiT, 8×8 patches", {**DIT, "patch": 8}),
}
RACE = ("resnet", "skips", "segnet", "unet", "dit", "mixer")


def configuration(name: str, **settings) -> TrainConfig:
    """The same training for all networks."""
    common = dict(optimizer="muon", warmup_steps=100, batch_size=BATCH, log_every=4, checkpoint_every=100)
    return TrainConfig(network=NETWORKS[name][1], **common, **settings)


def pace(name: str, images: Tensor) -> float:
    """How many pictures a network learns from in a minute of one processor core, whatever else the machine does."""
    times = [(record.images, time.process_time()) for record in train(configuration(name, steps=20), images)]
    (first, started), *_, (last, ended) = times
    return 60 * (last - first) / (ended - started)


def kept_per_picture(net: torch.nn.Module) -> int:
    """Bytes of intermediate results that training keeps for the backward pass, per picture."""
    sizes, own = {}, {p.data_ptr() for p in net.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = net.train().requires_grad_(True)(torch.zeros(BATCH, 3, SIZE, SIZE), torch.zeros(BATCH).long())
    del answer  # until here all of it is in memory, and no place is counted twice
    net.eval().requires_grad_(False)
    return sum(sizes.values()) // BATCH


def quality(denoiser: Denoiser, cars: sets.PictureSet, count: int) -> dict:
    """KID of `count` drawn pictures against the test part, by a late and by an early layer, and of as many training
    pictures; how many are drawn in a second of one processor core."""
    started = time.process_time()
    drawn = [
        sample(denoiser, range(i, min(i + 64, count)), (3, SIZE, SIZE), SAMPLER, STEPS) for i in range(0, count, 64)
    ]
    found = {"pictures_drawn_per_processor_second": round(count / (time.process_time() - started), 2), "count": count}
    some = cars.images[torch.linspace(0, len(cars.images) - 1, count).round().long()]
    for ruler, name in (("kid", features.DEFAULT), ("kid_early", f"{features.DEFAULT}_early")):
        real = features.cached(cars.part("test"), name)
        found[ruler] = round(metrics.kid(real, features.features(torch.cat(drawn), name))[0], 5)
        found[f"floor_{ruler}"] = round(metrics.kid(real, features.cached(some, name))[0], 5)
    return found


@dataclass
class AnyNetwork:
    """Any network will do, but not equally well: 32×32 cars by six networks of 0.6 million parameters each.

    All are trained in the same way (they predict x₀; Muon).  Equal minutes are minutes of one processor core: first
    each network's pace is measured, then minutes become a number of pictures, so that a run can be repeated.  Equal
    work is the number of multiply-accumulates that the ResNet does in these minutes.  Errors of x̂₀ and reaches are
    taken on validation pictures, KID on the test part.  Writes benchmarks/results/any-network.json, and a picture of
    what each network draws after equal minutes.
    """

    names: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(help=f"Out of {', '.join(NETWORKS)}; default: {RACE}.")
    ] = ()
    budget: Literal["minutes", "macs"] = "minutes"  # What is equal.
    minutes: float = 2.0  # Of training, for each; or, for macs, for the ResNet.
    seed: int = 0  # Of the training.
    learning_rate: float = 4e-3  # At its peak, for all of them.
    count: int = 256  # Pictures to draw and to measure; 0: errors and reaches alone.
    results: Path = RESULTS  # The folder of the results.
    runs: Path = Path("runs/any-network")  # The folder of the trainings.
    picture: Path | None = Path("images/any_network.png")  # What the six draw after equal minutes.

    def __call__(self) -> None:
        cars = sets.load("stanford_cars", SIZE)
        results = Results(self.results / "any-network.json", {"paces": {}, "rows": []}, "rows")
        for name in chosen("network", self.names or RACE, NETWORKS):
            settings = dict(network=name, budget=self.budget, minutes=self.minutes, seed=self.seed)
            settings |= dict(learning_rate=self.learning_rate, count=self.count)
            if not results.find(settings):
                results.add({**settings, **self._measured(name, cars, self._images(name, results, cars.images))})
            row = results.find(settings)
            said = {key: row[key] for key in (ERRORS, "kid", "kid_early") if key in row}
            print(f"{name}, {row['images_seen']:,} pictures: {said}", flush=True)

        if self.picture and self.budget == "minutes" and not self.names:
            folders = [self._folder(name, self._images(name, results, cars.images)) for name in RACE]
            draw = [pretrained.load(folder / "weights.safetensors") for folder in folders]
            rows = [sample(denoiser, range(SHOWN), (3, SIZE, SIZE), SAMPLER, STEPS) for denoiser in draw]
            labels = [NETWORKS[name][0].split(", attention")[0].split(", 4×4")[0] for name in RACE]
            self.picture.parent.mkdir(parents=True, exist_ok=True)
            figure = strip(rows, [f"seed {i}" for i in range(SHOWN)], labels)
            figure.savefig(self.picture, metadata={"Software": None})

    def _folder(self, name: str, images: int) -> Path:
        return self.runs / f"{name}-{images}-{self.learning_rate:g}-seed{self.seed}"

    def _images(self, name: str, results: Results, images: Tensor) -> int:
        """How many pictures the budget is, in whole batches."""
        paces = results.document["paces"]
        for each in {name: None, "resnet": None}:
            if each not in paces:
                paces[each] = round(pace(each, images))
                results.write()
        count = self.minutes * paces[name]
        if self.budget == "macs":
            macs = [networks.count_macs(networks.build(**NETWORKS[n][1]), (3, SIZE, SIZE)) for n in ("resnet", name)]
            count = self.minutes * paces["resnet"] * macs[0] / macs[1]
        return BATCH * max(1, round(count / BATCH))

    def _measured(self, name: str, cars: sets.PictureSet, images: int) -> dict:
        sigma_data, rate = root_mean_square(cars.images), self.learning_rate
        config = configuration(name, images=images, learning_rate=rate, seed=self.seed, sigma_data=sigma_data)
        folder = self._folder(name, images)
        started = time.process_time()
        record = trained(config, cars.images, f"{name}, seed {self.seed}", folder)
        row = {"processor_seconds": round(time.process_time() - started, 1)}
        denoiser, validation = record.denoiser, cars.part("validation")
        row |= dict(about=NETWORKS[name][0], **facts(record, SIZE), config=asdict(config), data=cars.description)
        row |= {
            "bytes_kept_per_picture": kept_per_picture(denoiser.net),
            ERRORS: errors(denoiser, validation, TIMESTEPS),
        }
        some = to_float(validation.repeat(2, 1, 1, 1)[:PIXELS])
        row["reach"] = {f"t={t}": [round(share, 4) for share in reach(denoiser, some, t).tolist()] for t in REACHES}
        if self.count:
            row |= quality(denoiser, cars, self.count)
        card = {option: getattr(config, option) for option in (*pretrained.NEEDED, "sigma_data")} | {"size": SIZE}
        pretrained.save(folder / "weights.safetensors", denoiser, card, dtype=torch.float32)
        return row


main = command(AnyNetwork, __doc__)

if __name__ == "__main__":
    main()
