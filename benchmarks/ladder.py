"""Trainings under one budget, and what is known without any.

    STANFORD_CARS_ROOT=… python benchmarks/ladder.py rows                    # every row that is not done yet
    STANFORD_CARS_ROOT=… python benchmarks/ladder.py rows none-sample --seed 1
    python benchmarks/ladder.py rows --list
    STANFORD_CARS_ROOT=… OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/ladder.py recipe
    STANFORD_CARS_ROOT=… python benchmarks/ladder.py stretch
    STANFORD_CARS_ROOT=… python benchmarks/ladder.py linear-bottleneck

Each question has its own --help.
"""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from common import RESULTS, Results, chosen, command
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from diffusion_utils import networks, pipeline, pretrained, sampling
from diffusion_utils.data import root_mean_square, sets, stanford_cars
from diffusion_utils.data.pictures import ASPECT, Pictures, load_folder
from diffusion_utils.data.sets import NON_COMMERCIAL
from diffusion_utils.evaluation import Reference, covariance_eigenvalues, error_per_timestep
from diffusion_utils.files import write_atomically, write_json
from diffusion_utils.networks.presets import CARS, CARS_1M
from diffusion_utils.prediction import Denoiser
from diffusion_utils.training import StepRecord, TrainConfig, averages, load_checkpoint, train
from diffusion_utils.training.checkpoints import only_run

ERRORS = "held_out_error_of_x0_as_share_of_variance"

# ---------------------------------------------------------------- the rows of notebook 05

SIZE, IMAGES, BATCH = 32, 76_800, 64
TIMESTEPS = (49, 99, 199, 299, 399, 499, 599, 699, 799, 899, 949)  # where the error of x̂₀ is measured
COUNT, SAMPLER, STEPS = 748, "dpm_solver_pp", 20  # as many pictures as are held out

# About 0.6 million parameters each.  BASE: 2×2 patches, work at 16×16, 8×8 and 4×4, stride 8.
BASE = {"name": "resnet", "channels": [32, 64, 96], "decoder_depth": 1, "stem": 2, "embedding_dim": 64}
FIRST = {"name": "resnet", "channels": [16, 24, 32, 48, 64, 80], "embedding_dim": 64}
SEGNET = {"name": "segnet", "channels": [24, 48, 112], "depth": 2, "embedding_dim": 64}
UNET = {"name": "unet", "channels": [16, 32, 64], "depth": 1, "embedding_dim": 64}
SKIPS = ("none", "indices", "add", "concat")
MAIN, MAIN_ASKED = BASE, "sample"  # "none-sample", the best KID of all skips and questions at this budget


def row(about: str, prediction_type: str, network: dict, frame: str = "crop", **settings) -> dict:
    """One row: what it shows, which pictures it sees, and its settings for `TrainConfig`."""
    settings = {"prediction_type": prediction_type, "network": network, **settings}
    return {"about": about, "frame": frame, "settings": settings}


def change(about: str, network: dict | None = None, **settings) -> dict:
    """A row that differs from MAIN in the options of its network or in settings of the training."""
    return row(about, MAIN_ASKED, {**MAIN, **(network or {})}, **settings)


ROWS = {
    # From the first version, one change a row, to BASE ("none-sample").
    "first-epsilon": row("the first version: stride 32, bare transposed convolutions, asked for ε", "epsilon", FIRST),
    "first-sample": row("the same network asked for x₀", "sample", FIRST),
    "stride-16": row("stride 16", "sample", {**FIRST, "channels": [16, 32, 48, 64, 88]}),
    "stride-8": row("stride 8", "sample", {**FIRST, "channels": [16, 32, 64, 112]}),
    "decoder-blocks": row(
        "residual blocks in the decoder", "sample", {**FIRST, "channels": [16, 32, 64, 96], "decoder_depth": 1}
    ),
    # Every way past the bottleneck, asked for everything.
    **{
        f"{skip}-{kind}": row(f"skips: {skip}, asked for {kind}", kind, {**BASE, "skip": skip})
        for kind in ("sample", "epsilon", "v_prediction", "edm")
        for skip in SKIPS
    },
    # Flow matching: its prediction type alone, and as its papers have it, with its schedule as well.
    **{
        f"{skip}-flow_prediction": row(f"skips: {skip}, asked for u", "flow_prediction", {**BASE, "skip": skip})
        for skip in ("none", "add")
    },
    "flow-none": row("flow matching: its schedule, asked for u", "flow_prediction", BASE, schedule="flow"),
    "flow-add": row("flow matching, skips: add", "flow_prediction", {**BASE, "skip": "add"}, schedule="flow"),
    # Single changes to MAIN.  (With a full-resolution stem it is "decoder-blocks".)
    "no-timestep": change("blind to the timestep", {"timestep": False}),
    "up-transposed-k3": change("transposed convolutions with kernel 3", {"upsample": "transposed_k3"}),
    "up-nearest": change("nearest neighbour and convolution", {"upsample": "nearest"}),
    "up-pixel-shuffle": change("pixel shuffle", {"upsample": "pixel_shuffle"}),
    "stem-4": change("4×4 patches", {"stem": 4, "channels": [64, 96]}),
    "attention-8": change("attention at 8×8", {"attention": [4]}),
    "attention-16": change("attention at 16×16", {"attention": [2]}),
    "lognormal": change("log-normal noise levels", timestep_sampling="lognormal"),
    "min-snr": change("min-SNR weights, γ = 5", min_snr_gamma=5.0),
    "linear": change("linear schedule", schedule="linear"),
    "muon": change("Muon instead of AdamW", optimizer="muon"),
    "no-decay": change("constant learning rate, averaged weights", decay_fraction=0.0),
    "no-decay-raw": change("constant learning rate, last weights", decay_fraction=0.0),
    "full-frame": change("whole photographs instead of cut-out cars", frame="frame"),
    # The changes that helped, together.
    "best": change(
        "Muon, nearest neighbour, attention at 16×16", {"upsample": "nearest", "attention": [2]}, optimizer="muon"
    ),
    # Other networks of the same size.
    "segnet-epsilon": row("SegNet, asked for ε", "epsilon", SEGNET),
    "segnet-sample": row("SegNet, asked for x₀", "sample", SEGNET),
    "unet-sample": row("U-Net, asked for x₀", "sample", UNET),
    # Other sizes of MAIN.
    "size-0.25": change("0.25 million parameters", {"channels": [24, 40, 56]}),
    "size-1": change("1 million parameters", {"channels": [40, 80, 120]}),
    "size-2": change("2 million parameters", {"channels": [56, 120, 176]}),
    "size-4": change("4 million parameters", {"channels": [80, 168, 248]}),
}
# Rows whose averaged and last weights are both measured share one training.
SAME_RUN = {"no-decay-raw": "no-decay"}
TWICE = ["none-sample", "muon"]  # with two seeds: what the rest is compared with, and the closest call


def trained(
    config: TrainConfig,
    images: torch.Tensor,
    title: str,
    folder: Path | None = None,
    branch: Path | None = None,
    keep: Callable[[StepRecord], None] = lambda record: None,
) -> StepRecord:
    """The last record of a training, which goes on where the folder holds a part of it.

    Args:
        branch: the folder of the run that it branches off from.
        keep: called with every record.
    """
    bar = tqdm(total=config.images, desc=title, unit=" images", file=sys.stdout, mininterval=10)
    for record in train(config, images, folder, resume=folder is not None, branch=branch):
        keep(record)
        bar.update(record.images - bar.n)
        bar.set_postfix_str(f"loss {record.loss:.4f}")
    bar.close()
    if record.stopped:
        sys.exit("stopped: the same command goes on, or starts again what keeps no checkpoint")
    return record


def facts(record: StepRecord, size: int) -> dict:
    """What a network is and what it learnt from."""
    net = record.denoiser.net
    return {
        "parameters": networks.count_parameters(net),
        "macs": networks.count_macs(net, (3, size, size)),
        "images_seen": record.images,
        "training_loss": round(record.loss, 5),
        **pretrained.machine(),
    }


def errors(denoiser: Denoiser, held_out: torch.Tensor, timesteps: tuple[int, ...]) -> dict[str, float]:
    """The error of x̂₀ at each noise level."""
    return {f"t={t}": round(e, 4) for t, e in zip(timesteps, error_per_timestep(denoiser, held_out, timesteps))}


def configuration(name: str, seed: int, sigma_data: float) -> TrainConfig:
    """The whole configuration of a row."""
    settings = {"images": IMAGES, "batch_size": BATCH, "warmup_steps": 100, **ROWS[name]["settings"]}
    return TrainConfig(**settings, sigma_data=sigma_data, seed=seed, log_every=50, checkpoint_every=200)


def pictures(frame: str) -> Pictures:
    """The cars, cut out along their boxes ("crop") or the middle of the whole photograph ("frame")."""
    if frame == "crop":
        return stanford_cars.load(size=SIZE)
    sources, _ = stanford_cars.read_annotations(stanford_cars.find())
    return load_folder(sources[0][0].parent, SIZE, ASPECT)


def train_row(name: str, seed: int, folder: Path) -> None:
    """Train a row to the end of its budget and store its weights with a card."""
    cars = pictures(ROWS[name]["frame"])
    images = cars.part(held_out=False).images
    config = configuration(name, seed, root_mean_square(images))
    record = trained(config, images, f"{name} seed {seed}", folder)
    card = {option: getattr(config, option) for option in (*pretrained.NEEDED, "sigma_data")} | {"size": SIZE}
    card |= facts(record, SIZE) | dict(steps=record.step, seconds=round(record.seconds), config=asdict(config))
    pretrained.save(folder / "weights.safetensors", record.denoiser, card, dtype=torch.float32)
    if name in SAME_RUN.values():
        last = networks.build(**config.network)
        last.load_state_dict(load_checkpoint(folder / "checkpoint.pt")["net"])
        raw = Denoiser(last, record.denoiser.schedule, config.prediction_type, config.sigma_data)
        pretrained.save(folder / "last_weights.safetensors", raw, card, dtype=torch.float32)


def measure_row(name: str, seed: int, folder: Path, reference: Reference) -> dict:
    """Error per noise level on held-out cars, and `COUNT` drawn pictures against real ones."""
    weights = folder / ("last_weights.safetensors" if name in SAME_RUN else "weights.safetensors")
    pipe = pipeline.load(weights)
    drawn = pipe(range(COUNT), sampler=SAMPLER, steps=STEPS)
    row = dict(row=name, seed=seed, about=ROWS[name]["about"], frame=ROWS[name]["frame"]) | pipe.card
    row |= dict(data=f"Stanford Cars train, {len(reference.train)} at {SIZE}×{SIZE}", licence=NON_COMMERCIAL)
    row[ERRORS] = errors(pipe.denoiser, reference.held_out, TIMESTEPS)
    row |= dict(sampler=SAMPLER, sampler_steps=STEPS, sample_seeds=f"0 … {COUNT - 1}")
    return row | reference.evaluate(drawn)


def ship(name: str, results: Path, runs: Path) -> Path:
    """Put a measured row's weights, in half precision, with all that was measured as their card,
    among those that come with the package."""
    card = json.loads((results / f"{name}-seed0.json").read_bytes())
    path = pretrained.FOLDER / f"cars32-{name}.safetensors"
    pretrained.save(path, pretrained.load(runs / f"{name}-seed0" / "weights.safetensors"), card)
    return path


@dataclass
class Ladder:
    """The ladder of notebook 05: one change at a time, from the network that failed to the best one.

    Every row trains on the same real cars (32×32) in the same order, sees the same number of them with
    the same batch size, and is measured in the same way; only what `ROWS` says differs.  A row that is
    interrupted goes on from its checkpoint; a row that is done is left alone; several of these commands
    may run at once and share the rows out among themselves.  Each row leaves a JSON file under
    benchmarks/results/ladder/ (committed), and its weights under runs/ladder/ (not committed).
    """

    rows: tyro.conf.Positional[tuple[str, ...]] = ()  # Default: all of them, those that decide with two seeds.
    seed: int | None = None  # Default: what is planned for the row.
    list: bool = False  # Say what there is and what is done.
    ship: bool = False  # Put the named rows' weights into the package.
    runs: Path = Path("runs/ladder")  # The folder of the trainings.
    results: Path = RESULTS / "ladder"  # The folder of the results.

    def __call__(self) -> None:
        names = chosen("row", self.rows, ROWS)
        if self.ship:
            for name in self.rows:
                print(ship(name, self.results, self.runs))
            return
        # The first seed of every row comes before the second of any.
        plan = [(name, seed) for seed in (0, 1) for name in names if seed == 0 or name in TWICE]
        if self.seed is not None:
            plan = [(name, self.seed) for name in names]
        references: dict[str, Reference] = {}
        for name, seed in plan:
            result = self.results / f"{name}-seed{seed}.json"
            folder = self.runs / f"{SAME_RUN.get(name, name)}-seed{seed}"
            if self.list:
                print(f"{name:24} seed {seed}  {'done' if result.exists() else '    '}  {ROWS[name]['about']}")
                continue
            if result.exists():
                continue
            with ExitStack() as held:
                try:
                    held.enter_context(only_run(folder))
                except FileExistsError:  # another process has this row
                    continue
                if not (folder / "weights.safetensors").exists():
                    train_row(SAME_RUN.get(name, name), seed, folder)
                frame = ROWS[name]["frame"]
                if frame not in references:
                    cars = pictures(frame)
                    references[frame] = Reference(*(cars.part(held_out).images for held_out in (False, True)))
                row = measure_row(name, seed, folder, references[frame])
                write_json(result, row)
            print(f"{name} seed {seed}: KID {row['generated']['kid']}, floor {row['floor']['kid']}", flush=True)


# ---------------------------------------------------------------- the search for a recipe

RECIPE_SIZE, RECIPE_TIMESTEPS, HELD_OUT = 64, (19, 99, 299, 499, 699, 899), 512
COARSE = dict(name="resnet", channels=[64, 96], depth=[2, 2], decoder_depth=2, stem=4, attention=[8], embedding_dim=64)
COARSE |= dict(skip="add", upsample="nearest", patch_head=True)
WEIGHTED = {"learning_rate": 2e-3, "min_snr_gamma": 5.0}
# One line per candidate: what it is, its network, and what differs in its training.
CANDIDATES = {
    "chosen": ("4 resolutions, 2×2 patches, learning rate 0.002", CARS_1M, {"learning_rate": 2e-3}),
    "slower": ("the same, learning rate 0.001", CARS_1M, {}),
    "weighted": ("as chosen, errors weighted by the SNR, from 1 to 5", CARS_1M, {**WEIGHTED, "snr_floor": 1.0}),
    "min-SNR": ("as chosen, errors weighted by the SNR, up to 5", CARS_1M, WEIGHTED),
    "no attention": ("as slower, without attention", {**CARS_1M, "attention": []}, {}),
    "shallow": (
        "3 resolutions, 2×2 patches",
        CARS_1M | dict(channels=[32, 64, 112], depth=[1, 1, 2], attention=[8]),
        {},
    ),
    "fast": ("3 resolutions, 4×4 patches", {**CARS_1M, "channels": [64, 80, 96], "stem": 4}, {}),
    "coarse": ("2 resolutions, 4×4 patches", COARSE, {}),
    "coarse, EDM": ("the same, asked as EDM asks", COARSE, {"prediction_type": "edm"}),
    "coarse, v": ("the same, asked for v", COARSE, {"prediction_type": "v_prediction"}),
    "coarse, no skips": ("the same without skips", {**COARSE, "skip": "none"}, {}),
    "coarse, attention 16": ("the same with attention at 16×16 as well", {**COARSE, "attention": [4, 8]}, {}),
    "first": ("the network of notebooks 02 and 03", CARS, {}),
}
DECISIVE = ("chosen", "slower", "weighted", "fast", "coarse")  # what decided


def recipe_configuration(name: str, seed: int, minutes: float, sigma_data: float) -> TrainConfig:
    _, network, changes = CANDIDATES[name]
    settings = {"optimizer": "muon", "warmup_steps": 100, "log_every": 50, **changes}
    return TrainConfig(network=network, minutes=minutes, seed=seed, sigma_data=sigma_data, **settings)


def measure_candidate(name: str, seed: int, minutes: float) -> dict:
    """Train one candidate and take its error at each noise level."""
    cars = sets.load("stanford_cars", RECIPE_SIZE)
    config = recipe_configuration(name, seed, minutes, root_mean_square(cars.images))
    record = trained(config, cars.images, f"{name}, seed {seed}")
    measured = {ERRORS: errors(record.denoiser, cars.held_out[:HELD_OUT], RECIPE_TIMESTEPS)}
    settings = dict(candidate=name, about=CANDIDATES[name][0], seed=seed, minutes=minutes)
    return settings | facts(record, RECIPE_SIZE) | measured | dict(data=cars.description, config=asdict(config))


@dataclass
class Recipe:
    """The search for the network of at most a million parameters: candidates, equal minutes each.

    Minutes, not images: a network that costs half as much sees twice as many pictures, which is the
    bargain to be struck.  What is compared is the error of x̂₀ on held-out cars, which a second seed moves
    far less than KID.  What is measured already is kept, so the command may be interrupted.  The minutes
    mean something only on a processor core that does nothing else, which is what taskset is for.  Writes
    benchmarks/results/recipe.json.
    """

    candidates: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(help=f"Default: all of {', '.join(CANDIDATES)}.")
    ] = ()
    seed: int | None = None  # Default: 0, and 1 for those that decided.
    minutes: float = 4  # Of training, for each.
    out: Path = RESULTS / "recipe.json"  # The JSON file of the results.

    def __call__(self) -> None:
        names = chosen("candidate", self.candidates, CANDIDATES)
        results = Results(self.out)
        for seed in (0, 1) if self.seed is None else (self.seed,):
            for name in names:
                decisive = not seed or self.seed is not None or name in DECISIVE
                if decisive and not results.find({"candidate": name, "seed": seed, "minutes": self.minutes}):
                    results.add(measure_candidate(name, seed, self.minutes))
        for row in results.rows:
            if row["minutes"] == self.minutes:
                print(f"{row['candidate']}, seed {row['seed']}: {row['images_seen']:,} images, {row[ERRORS]}")


# ---------------------------------------------------------------- the last stretch of a long training

TRUNK, STRETCH = 51_200, 25_600  # pictures at a constant rate, which all share, and from there on
SNAPSHOT_STEPS = 25  # from one snapshot of the average to the next
SHORT = 0.99  # decay of the average that is kept, of some 100 steps
GAMMAS = (9, 5, 3, 1)  # of longer averages, see `averages.power`: of an 11th, a 7th, a 5th, a third of the run
LATE = {"learning_rate": 1e-3, "decay_fraction": 1.0}
# What is switched on for the stretch; the learning rate falls to 0 over all of it.
CHANGES = {
    "constant rate": {"decay_fraction": 0.0},
    "nothing": {},
    "pictures moved by up to 1 pixel": {"shift": 1},
    "log-normal noise levels": {"timestep_sampling": "lognormal"},
    "logit-normal noise levels": {"timestep_sampling": "logitnormal"},
    "batches of 256, twice the rate": {"batch_size": 256, "learning_rate": 2e-3},
    "features, weight 0.02": {"feature_weight": 0.02},
    "features, weight 0.1": {"feature_weight": 0.1},
}


def stretch_configuration(change: str | None, seed: int, sigma_data: float) -> TrainConfig:
    """Of the trunk, where there is no change to be tried; else of a branch."""
    settings = {"batch_size": BATCH, "warmup_steps": 100, "log_every": SNAPSHOT_STEPS, **ROWS["muon"]["settings"]}
    settings |= {"images": TRUNK, "decay_fraction": 0.0, "ema_decay": SHORT, "seed": seed}
    if change is not None:
        settings |= {"images": STRETCH, "warmup_steps": 0, "seed": seed + 1000, **LATE, **CHANGES[change]}
    return TrainConfig(**settings, sigma_data=sigma_data)


def read_snapshots(folder: Path, first_step: int = 0) -> dict[int, dict[str, torch.Tensor]]:
    """The averages that a run has kept, by their step, counted from `first_step` on."""
    return {first_step + int(path.stem): load_file(path) for path in sorted((folder / "snapshots").glob("*"))}


@dataclass
class Stretch:
    """What is worth switching on for the last stretch of a long training, on a small scale.

    One training at a constant rate (`TRUNK` pictures, the network and the optimizer of row "muon"), from which
    all branch off, each with one change, for equally many pictures (`STRETCH`).  The average of the weights is
    short, and longer ones are put together after the run.  Measured on the validation pictures, as something is
    chosen by it.  Writes benchmarks/results/stretch.json.
    """

    changes: tyro.conf.Positional[tuple[str, ...]] = ()  # Default: all.
    seeds: tuple[int, ...] = (0, 1)
    runs: Path = Path("runs/stretch")  # The folder of the trainings.
    out: Path = RESULTS / "stretch.json"  # The JSON file of the results.

    def __call__(self) -> None:
        names, results = chosen("change", self.changes, CHANGES), Results(self.out)
        cars = sets.load("stanford_cars", SIZE)
        reference = Reference(cars.images, cars.part("validation"))
        sigma_data = root_mean_square(cars.images)
        for seed in self.seeds:
            trunk = self.runs / f"trunk-seed{seed}"
            for name in names:
                gammas = (None, *GAMMAS) if name in ("constant rate", "nothing") else (None,)
                asked = [{"change": name, "seed": seed, "gamma": gamma} for gamma in gammas]
                missing = [settings for settings in asked if not results.find(settings)]
                if not missing:
                    continue
                self.train(None, seed, cars.images, sigma_data, trunk)
                folder = self.runs / f"{name.replace(' ', '-')}-seed{seed}"
                record = self.train(name, seed, cars.images, sigma_data, folder, trunk)
                config = stretch_configuration(name, seed, sigma_data)
                about = {"config": asdict(config), "data": cars.description} | facts(record, SIZE)
                for settings in missing:
                    scores = self.measure(record.denoiser, settings["gamma"], folder, trunk, reference)
                    results.add({**settings, **about, **scores})
                    print(settings, scores[ERRORS], scores["generated"], flush=True)

    def train(self, change, seed, images, sigma_data, folder, trunk=None) -> StepRecord:
        """The end of the trunk or of a branch; each leaves its snapshots."""

        def keep(record: StepRecord) -> None:
            if not record.step % SNAPSHOT_STEPS:
                weights = {name: value.contiguous() for name, value in record.denoiser.net.state_dict().items()}
                path = folder / "snapshots" / f"{record.step:06}.safetensors"
                write_atomically(path, lambda temporary: save_file(weights, temporary))

        config = stretch_configuration(change, seed, sigma_data)
        return trained(config, images, f"{change or 'trunk'}, seed {seed}", folder, trunk, keep)

    def measure(self, denoiser: Denoiser, gamma: float | None, folder: Path, trunk: Path, reference: Reference) -> dict:
        """Error and likeness with a long average, or, without gamma, with the one that was kept."""
        before = read_snapshots(trunk)
        snapshots = before | read_snapshots(folder, first_step=max(before))
        steps, shares = max(snapshots), torch.tensor([0.0] * (len(snapshots) - 1) + [1])
        if gamma is not None:
            profiles = [averages.exponential(step, SHORT, steps) for step in snapshots]
            shares = averages.mixture(profiles, averages.power(steps, gamma))
        denoiser.net.load_state_dict(averages.mix([*snapshots.values()], shares))
        drawn = sampling.sample(denoiser, range(len(reference.held_out)), (3, SIZE, SIZE), SAMPLER, STEPS)
        return {ERRORS: errors(denoiser, reference.held_out, TIMESTEPS), **reference.evaluate(drawn, copies=False)}


# ---------------------------------------------------------------- what can be known without training


@dataclass
class LinearBottleneck:
    """What the best linear denoiser could do through a bottleneck, exactly, on real car pictures.

    Writes the spectrum of the pictures' covariance (12,288 numbers: no picture can be made from it) to
    benchmarks/results/stanford_cars_spectrum.safetensors, which notebook 03 and report.py read.
    """

    out: Path = RESULTS / "stanford_cars_spectrum.safetensors"  # The file of the spectrum.

    def __call__(self) -> None:
        images = stanford_cars.load(size=64).images
        spectrum = covariance_eigenvalues(images)
        metadata = {"pictures": str(len(images)), "size": "64", "made_by": "benchmarks/ladder.py linear-bottleneck"}
        write_atomically(self.out, lambda path: save_file({"eigenvalues": spectrum.float()}, path, metadata=metadata))
        print(f"{len(images)} pictures, variance {spectrum.sum() / len(spectrum):.4f} per number")


COMMANDS = {"rows": Ladder, "recipe": Recipe, "stretch": Stretch, "linear-bottleneck": LinearBottleneck}


main = command(COMMANDS, __doc__)

if __name__ == "__main__":
    main()
