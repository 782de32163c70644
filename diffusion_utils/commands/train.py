"""Train a denoiser, an autoencoder, or a few-step student."""

import errno
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from diffusion_utils import networks, pretrained, training
from diffusion_utils.checks import check_folder
from diffusion_utils.data import root_mean_square, sets, stanford_cars, to_float
from diffusion_utils.data.pictures import ASPECT, ratio
from diffusion_utils.data.sets import CONDITIONS, PictureSet
from diffusion_utils.evaluation import error_per_timestep, reconstruction_quality
from diffusion_utils.files import write_json
from diffusion_utils.networks import Autoencoder, SuperResolution, count_macs, count_parameters, lora
from diffusion_utils.networks.presets import default_network, default_size, for_latents
from diffusion_utils.networks.super_resolution import low_resolution_cond, shrink
from diffusion_utils.pipeline import UNCONDITIONAL, Drawing, Pipeline
from diffusion_utils.plotting import save_grid
from diffusion_utils.training import Run, StepRecord, TrainConfig
from diffusion_utils.training.arithmetic import precision_on
from diffusion_utils.training.checkpoints import CHECKPOINT, load_checkpoint
from diffusion_utils.training.config import BUDGET, FREE_ON_RESUME, KEPT_BY_BRANCH
from diffusion_utils.training.loop import STARTED, check_share

CONSISTENCY_DRAWING = {"sampler": "consistency", "steps": 2}
COUNTED = ("images_seen", "steps", "seconds")  # of a model card, those of the run's start included
MOST_PARAMETERS = 10**9
COLUMNS, WEIGHTS, RUN = 8, "weights.safetensors", "run.json"
OPEN = TrainConfig(network=None, sigma_data=None)  # where the command line leaves out what depends on the pictures
DIFFUSION = "prediction_type schedule num_train_timesteps zero_terminal_snr timestep_sampling min_snr_gamma".split()
MEANT_FOR = {  # options that say something only where another one has one of these values
    "kl_weight": ("objective", ("autoencoder",)),
    **dict.fromkeys(("perceptual_weight", "adversarial_weight"), ("objective", ("decoder",))),
    "sigma_data": ("prediction_type", ("edm",)),
    "cond_dropout": ("condition", tuple(name for name in CONDITIONS if name != "low_resolution")),
    **dict.fromkeys(DIFFUSION, ("objective", ("denoising", "consistency"))),
}


def train(run: Run) -> None:
    """Train a denoiser, an autoencoder, or a few-step student.

    The folder of the run receives checkpoint.pt, log.jsonl, a grid of samples now and then, and at the end
    weights.safetensors with its model card.  Ctrl-C saves and leaves; --resume goes on.  On several GPUs:
    accelerate launch -m diffusion_utils train …
    """
    processes = Accelerator()
    if processes.is_main_process:
        check_share(run.config, processes.num_processes)
    elif run.config.batch_size % processes.num_processes:
        return  # the main process says it
    check_folder(run.out)
    has_checkpoint = (run.out / CHECKPOINT).exists()
    if (run.out / WEIGHTS).exists() and not has_checkpoint:
        raise FileExistsError(f"{run.out} holds {WEIGHTS}, but no run to go on with: choose another folder")
    if run.resume and not (run.out / RUN).is_file():
        none = f"{run.out} holds no run to go on with: leave --resume out to begin one"
        raise FileNotFoundError(f"{run.out / RUN} is missing: put it back" if has_checkpoint else none)
    with _sentence_for_no_room(run):
        _train(prepare(run))


def _train(job: "Job") -> None:
    """Train, and keep what it leaves."""
    run, config, bar = job.run, job.run.config, None
    is_main = Accelerator().is_main_process  # of several, one writes and talks
    begun = run.resume and (run.out / CHECKPOINT).exists()
    if run.resume and not begun and is_main:
        print(f"{run.out} holds no checkpoint yet: starting the run there")
    start = pretrained.load(run.start).net if run.start and not begun else None
    records = training.train(config, job.images, run.out, run.resume, job.cond, start, job.begin, run.branch)
    try:
        for record in records:
            if not is_main:
                continue
            if bar is None:
                bar = tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}")
            bar.n = round(100 * config.progress(record.step, record.seconds), 2)
            bar.set_postfix_str(f"step {record.step}, loss {record.loss:.4f}, {record.images_per_second:.0f} images/s")
            job.keep(record)
            if config.progress(record.step, record.seconds) >= 1:  # while training still holds the folder
                bar.close()
                job.finish(record)
            elif record.stopped:
                bar.close()
                print(f"stopped at step {record.step} and saved; go on with --resume --out {run.out}")
    finally:
        if bar is not None:
            bar.close()  # so that an error has a line of its own


@contextmanager
def _sentence_for_no_room(run: Run) -> Iterator[None]:
    """Say what would need less memory, and what is safe when there is no room left for what a run writes."""
    out = run.out
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise ValueError(
            f"there is not enough memory for batches of {run.config.batch_size}: lower --batch-size or --size, or give "
            "a smaller network"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        safe = "the last checkpoint is whole" if (out / CHECKPOINT).exists() else "no checkpoint was written yet"
        again = f"go on with --resume --out {out}" if (out / RUN).exists() else "give the same command again"
        raise OSError(
            f"no room for the files of {out} ({os.strerror(error.errno).lower()}): {safe}; make room and {again}"
        ) from None


@dataclass(frozen=True, eq=False)
class Job:
    """A run with all that it takes to train, to save and to draw.

    Attributes:
        run: complete: nothing is left to a default that depends on the pictures.
        pictures: the set it learns from.
        images, held_out: what it learns from: its pictures, uint8, or their latents, float32.
        cond: the conditions of `images`, or None.
        card: the model card's entries that are known before training.
        before: what the weights that it starts with have seen (`COUNTED`), and their name.
        autoencoder: whose latents it learns.
        source: where that came from; `run.autoencoder` is where it will be.
        mirrored: whether it learns the mirrored pictures, too.
    """

    run: Run
    pictures: PictureSet
    images: Tensor
    held_out: Tensor
    cond: Tensor | None
    card: dict
    before: dict = field(default_factory=dict)
    autoencoder: Autoencoder | None = None
    source: str | None = None
    mirrored: bool = True

    @property
    def aspect(self) -> float:
        """Width over height at which its pictures are shown."""
        return ratio(self.pictures.aspect)

    @property
    def spares_some(self) -> bool:
        """Whether there were enough pictures to hold some out."""
        return not torch.equal(self.pictures.images, self.pictures.held_out)

    def begin(self) -> None:
        """Write what `--resume` needs beside the checkpoint, and say how many pictures there are; an autoencoder
        that does not ship with the package is copied there, so that the folder is complete."""
        if self.source and Path(self.source).absolute() != Path(self.run.autoencoder).absolute():
            pretrained.copy(self.source, self.run.autoencoder)
        more = {"before": self.before, "fingerprint": self.pictures.fingerprint, "mirrored": self.mirrored}
        more |= {"lora": self.card["lora"]} if "lora" in self.card else {}
        write_json(self.run.out / RUN, self.run.to_json() | more)
        count = len(self.pictures.images)
        spared = f"{len(self.held_out)} held out to measure with"
        few = "and to measure with: too few to hold any out"
        print(f"{count} picture{'s' * (count > 1)} to learn from, {spared if self.spares_some else few}")

    def keep(self, record: StepRecord) -> None:
        """Write what a run leaves on its way: grids and snapshots, where they are due."""
        run = self.run
        due = run.sample_every and record.step % run.sample_every < run.config.log_every
        if due and record.images_per_second:
            save_grid(self.draw(record, 32), run.out / f"samples_{record.step:07d}.png", COLUMNS, self.aspect)
        if run.snapshot_images:
            reached = record.images // run.snapshot_images * run.snapshot_images
            path = run.out / "snapshots" / f"weights_{reached:09d}.safetensors"
            if reached and not path.with_suffix(".json").exists():  # the card is written last
                self.save(record, path)

    def finish(self, record: StepRecord) -> None:
        """Write what a run leaves at its end, and say so."""
        out = self.run.out
        if not record.images_per_second:
            print(f"{out} had already used its budget: raise --steps, --images or --minutes to go on")
        self.save(record, out / WEIGHTS)
        save_grid(self.draw(record, 64), out / "samples.png", COLUMNS, self.aspect)
        parameters = count_parameters(record.denoiser.net)
        print(f"{parameters:,} parameters, {record.images:,} images: {out}/{WEIGHTS}, samples.png")

    def save(self, record: StepRecord, path: Path) -> None:
        """Write the averaged weights, with their model card."""
        if self.run.config.objective == "autoencoder":  # a decoder that is trained on keeps its latents' scale
            chosen = self.images[:: max(1, len(self.images) // 1024)]
            record.denoiser.net.set_scale(to_float(chosen).to(_device(record)))
        pretrained.save(path, record.denoiser, self.card | self._measured(record))

    @torch.no_grad()
    def draw(self, record: StepRecord, count: int) -> Tensor:
        """What the network can do by now, (count, 3, H, W): pictures from noise (seeds 0, 1, …), by the
        captions on the card where it takes captions; or held-out pictures, reconstructed or enlarged."""
        net, device = record.denoiser.net, _device(record)
        if isinstance(net, Autoencoder):
            return net(to_float(self.held_out[:count].to(device)))[0]
        denoiser = replace(record.denoiser, autoencoder=self.autoencoder and self.autoencoder.to(device))
        pipe = Pipeline(denoiser, self.card, Drawing.from_card(self.card), device=device)
        if isinstance(net, SuperResolution):
            small = shrink(to_float(self.held_out[:count]), net.scale)
            return pipe.enlarge(small, range(len(small)), noise_level=0)
        return pipe(range(count), None if "prompts" in self.card else UNCONDITIONAL)

    def _measured(self, record: StepRecord) -> dict:
        """The model card's entries that are known only now."""
        config, denoiser, held_out = self.run.config, record.denoiser, self.held_out[:512]
        if config.lora:
            denoiser = replace(denoiser, net=lora.merge(denoiser.net))
        whose = "held_out" if self.spares_some else "training"
        done = (record.images, record.step, round(record.seconds))
        entries = {
            "parameters": count_parameters(denoiser.net),
            "macs": count_macs(denoiser.net, tuple(held_out.shape[1:])),
            # What the run began with has been trained, too: its pictures, steps and seconds count.
            **{name: count + self.before.get(name, 0) for name, count in zip(COUNTED, done)},
            **({"training_loss": round(record.loss, 5)} if math.isfinite(record.loss) else {}),  # a log that is lost
        }
        if isinstance(denoiser.net, Autoencoder):
            return entries | {f"{whose}_reconstruction": reconstruction_quality(denoiser.net, held_out)}
        times = [int(share * (config.num_train_timesteps - 1)) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
        cond = None  # networks are measured unconditional, but for those that cannot do without
        if isinstance(denoiser.net, SuperResolution):
            small = shrink(to_float(held_out), denoiser.net.scale)
            level = torch.zeros(len(small), dtype=torch.int64)
            cond = low_resolution_cond(small, denoiser.schedule, level, torch.zeros_like(small))
        varied = bool((held_out != held_out[:1]).any())  # one picture has no variance to compare with
        errors = error_per_timestep(denoiser, held_out, times, cond=cond) if varied else []
        errors = {f"t={t}": round(error, 4) for t, error in zip(times, errors)}
        return entries | {f"{whose}_error_of_x0_as_share_of_variance": errors}


def prepare(run: Run) -> Job:
    """Load what a run needs, and settle what depends on it.

    Raises:
        ValueError: options that do not go together, or that a resumed run cannot change.
    """
    run, stored = _located(run), {}
    if resumed := run.resume and (run.out / RUN).is_file():
        run, stored = _resumed(run)
        before, has = stored.get("before") or {}, run.condition
    else:
        asked = run
        _check_places(run)
        run, before, has = _branched(run) if run.branch else _started(run) if run.start else _begun(run)
        _refuse_ignored(asked, run)
        _check_network(run)
    run.config.progress(0, 0)
    pictures = _pictures(run, stored)
    mirrored = pictures.flip and stored.get("mirrored", run.config.flip or bool(resumed and run.autoencoder))
    config, images, held_out, description = run.config, pictures.images, pictures.held_out, pictures.description
    classes = pictures.classes
    if run.start and has == "class" and not resumed:
        classes = [*pretrained.card(run.start)["conditions"]]
    same = run.condition == has and pictures.classes == classes
    network = config.network if same else pictures.conditional(config.network)
    cond, entries = pictures.cond(network)
    source, autoencoder = run.autoencoder, None
    if source:
        autoencoder = pretrained.load_autoencoder(source)
        if source not in pretrained.names():
            run = replace(run, autoencoder=str(run.out / Run.AUTOENCODER))
        images = sets.as_latents(autoencoder, images, mirrored)
        cond = cond if cond is None else torch.cat([cond] * (len(images) // len(cond)))
        held_out = sets.as_latents(autoencoder, held_out)
        description += f", as latents of {autoencoder.latent_shape(run.size, run.size)}"
    sigma_data = config.sigma_data
    if sigma_data is None:
        sigma_data = root_mean_square(images) if config.prediction_type == "edm" else TrainConfig.sigma_data
    # Latents are mirrored as pictures, before.
    config = replace(config, network=network, sigma_data=sigma_data, flip=mirrored and not autoencoder)
    adapted = pretrained.lora_entry(run.start, config.lora) if config.lora else None
    if adapted and stored.get("lora", adapted)["sha256"] != adapted["sha256"]:
        raise ValueError(
            f"{run.out} adapts other weights than {run.start} holds now: put those back, or choose another folder"
        )
    card = {
        **{name: getattr(config, name) for name in (*pretrained.NEEDED, "sigma_data")},
        "size": run.size,
        **({"aspect": pictures.aspect} if pictures.aspect else {}),
        **entries,
        **({"drawing": CONSISTENCY_DRAWING} if config.objective == "consistency" else {}),
        **({"autoencoder": run.autoencoder} if autoencoder else {}),
        **({"start": before} if before else {}),
        **({"lora": adapted} if adapted else {}),
        "data": description,
        "licence": pictures.licence,
        **pretrained.machine(),
        "mixed_precision": precision_on(Accelerator().device, config.mixed_precision),  # what "auto" meant there
        "seed": config.seed,
        "config": asdict(config),
    }
    run = replace(run, aspect=pictures.aspect, config=config)
    return Job(run, pictures, images, held_out, cond, card, before, autoencoder, source, mirrored)


def _pictures(run: Run, stored: dict) -> PictureSet:
    """The pictures of a run; `stored`: what its run.json says of those that it was begun with."""
    fingerprint, before = stored.get("fingerprint"), stored.get("data", run.data)
    others = ValueError(
        f"{run.out} was begun with other pictures than those in {run.data}: say with --data where they are, or "
        "choose another folder"
    )
    if run.data != before and {run.data, before} & {*sets.LICENCES}:
        raise others
    try:
        pictures = sets.load(run.data, run.size, run.condition, run.aspect)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}{'; say with --data where they are now' if fingerprint else ''}") from None
    if fingerprint not in (None, pictures.fingerprint):
        raise others
    return pictures


def stored_run(out: Path) -> Run:
    """The run in a folder, as the default of a command line that resumes it: what differs from it was said there."""
    stored, _ = Run.from_folder(out)
    return replace(stored, config=replace(stored.config, **dict.fromkeys(BUDGET)))


def branched_run(out: Path) -> Run:
    """The same of a command line that branches off from it: with other pictures in its batches, and no warm-up."""
    stored, (_, contents) = stored_run(out), Run.from_folder(out)
    flip = contents.get("mirrored", stored.config.flip or bool(stored.autoencoder))  # latents are, as pictures
    config = replace(stored.config, flip=flip, seed=stored.config.seed + 1, warmup_steps=0)
    return replace(stored, resume=False, start=None, branch=str(out), config=config)


def _refuse_ignored(asked: Run, run: Run) -> None:
    """Raise a ValueError for an option that would change nothing in the run that comes of it."""
    default = branched_run(Path(run.branch)) if run.branch else Run(Path(), config=OPEN)
    said, default, now = ({**vars(one), **vars(one.config)} for one in (asked, default, run))
    for name, (other, values) in MEANT_FOR.items():
        if said[name] != default[name] and now[other] not in values:
            flags = (text.replace("_", "-") for text in (name, other))
            raise ValueError("--{} says something only with --{} {}: leave it out".format(*flags, " or ".join(values)))


def _check_network(run: Run) -> None:
    """Raise a ValueError for a network that cannot be, or that does not fit the size, before pictures are read."""
    with torch.device("meta"):  # takes no memory, however large it is
        net = networks.build(**run.config.network)
    if (count := count_parameters(net)) > MOST_PARAMETERS:
        raise ValueError(f"the network would have {count:,} parameters: {MOST_PARAMETERS:,} at most")
    stride = net.stride * (pretrained.load_autoencoder(run.autoencoder).stride if run.autoencoder else 1)
    if run.size % stride:
        raise ValueError(
            f"--size {run.size} does not fit the network, which takes multiples of its stride, {stride}: "
            f"give --size {(run.size // stride + 1) * stride}, or another network"
        )
    if run.config.lora and not (run.start or run.branch):
        raise ValueError("--lora adapts a trained network: give --start WEIGHTS")
    if run.config.objective in STARTED and not (run.start or run.branch):
        raise ValueError(f"objective {run.config.objective!r} tunes a trained network: give start (--start WEIGHTS)")


def _check_places(run: Run) -> None:
    """Raise a ValueError where the pictures of a run would be learnt from, as --data or later; and warn where a
    folder has the name of pictures that are known here."""
    data, out = Path(run.data), run.out.resolve()
    if run.data in sets.LICENCES:
        if data.is_dir() and not (run.data == "stanford_cars" and stanford_cars.find() == data):
            warnings.warn(f"--data {data} does not mean the folder here, which is --data ./{data}", stacklevel=2)
        return
    data = data.resolve()
    if (data / RUN).is_file():
        raise ValueError(f"--data {run.data} is the folder of a run, not of pictures to learn from: choose another")
    if out.is_relative_to(data):
        raise ValueError(f"--out {run.out} lies in the folder of the pictures, --data: choose another place")


def _located(run: Run) -> Run:
    """The run with whole paths, so that it can be resumed from another working folder."""
    shipped = pretrained.names()
    names = {"data": sets.LICENCES, "start": shipped, "autoencoder": shipped, "branch": []}
    paths = {name: getattr(run, name) for name in names}
    paths = {name: path for name, path in paths.items() if path and path not in names[name] and "://" not in path}
    return replace(run, **{name: str(Path(path).absolute()) for name, path in paths.items()})


def _resumed(run: Run) -> tuple[Run, dict]:
    """The run as it was stored, with a new budget; and all that its run.json says."""
    stored, contents = Run.from_folder(run.out)
    stored = _located(stored)
    if all(getattr(run.config, name) is None for name in BUDGET):
        run = replace(run, config=replace(run.config, **{name: getattr(stored.config, name) for name in BUDGET}))
    then, now = ({**vars(both), **vars(both.config)} for both in (stored, run))
    free = FREE_ON_RESUME | {"config", "sample_every", "snapshot_images"}
    free |= {"data"} if contents.get("fingerprint") else set()  # which tells whether it is the same
    if changed := [name for name in then if name not in free and then[name] != now[name]]:
        name = changed[0]
        flag = ("no-" if now[name] is False else "") + name.replace("_", "-")
        raise ValueError(
            f"{run.out} was begun with {name} {then[name]!r} and cannot go on with {now[name]!r}: "
            f"leave --{flag} out, or choose another folder"
        )
    return run, contents


# Both of these give the run, what the weights that it starts with have seen, and the condition that its network
# takes already.
def _begun(run: Run) -> tuple[Run, dict, str | None]:
    """A new run with a network of random weights."""
    autoencoder = pretrained.load_autoencoder(run.autoencoder) if run.autoencoder else None
    network = run.config.network
    if network is None:
        network = default_network(run.data, run.condition, run.config.objective, autoencoder)
    if autoencoder:
        network = for_latents(network, autoencoder)
    condition = "low_resolution" if network.get("name") == "super_resolution" else run.condition
    size = default_size(run.data) if run.size is None else run.size
    return replace(run, size=size, condition=condition, config=replace(run.config, network=network)), {}, None


def _branched(run: Run) -> tuple[Run, dict, str | None]:
    """A new run that goes on from another one's checkpoint."""
    other, contents = Run.from_folder(Path(run.branch))
    other = _located(other)
    if other.config.lora:
        raise ValueError(f"{run.branch} learnt adapters, from which no branch goes off: --resume it, or --start anew")
    if run.start:
        raise ValueError("--start and --branch both say what to begin with: give one of them")
    then, now = ({**vars(both), **vars(both.config)} for both in (other, run))
    for name in ("data", "size", "aspect", "condition", "autoencoder", *KEPT_BY_BRANCH):
        if then[name] != now[name]:
            flag = name.replace("_", "-")
            raise ValueError(
                f"a branch keeps {name} of the run that it leaves, {then[name]!r}: leave --{flag} out, or begin with "
                "its weights, --start"
            )
    checkpoint = load_checkpoint(Path(run.branch) / CHECKPOINT)
    done = (checkpoint["step"] * other.config.batch_size, checkpoint["step"], round(checkpoint["seconds"]))
    earlier = contents.get("before") or {}
    before = {name: count + earlier.get(name, 0) for name, count in zip(COUNTED, done)}
    return run, {"name": Path(run.branch).name, "branch": True} | before, run.condition


def _started(run: Run) -> tuple[Run, dict, str | None]:
    """A new run that begins with trained weights, with what their card says."""
    card = pretrained.card(run.start)
    is_one, wanted = card["network"]["name"] == "autoencoder", run.config.reconstructs
    if is_one and not wanted:
        raise ValueError(f"{run.start} is an autoencoder: add --objective autoencoder")
    if wanted and not is_one:
        raise ValueError(f"{run.start} is no autoencoder: leave --objective {run.config.objective} out")
    own = [name for name in ("network", "sigma_data") if getattr(run.config, name) is not None]
    own += [name for name in ("size", "autoencoder") if getattr(run, name) is not None]
    has = sets.condition_of(card)
    anew = ("caption", "class") if has in (None, "body_type", "class") else ("caption",)  # may be learnt of others
    own += ["condition"] if run.condition not in (None, *anew) else []
    own += [
        name for name in pretrained.NEEDED if name != "network" and getattr(run.config, name) != getattr(OPEN, name)
    ]
    if own == ["autoencoder"] and not card.get("autoencoder"):
        raise ValueError(f"{run.start} draws pixels and cannot learn latents: leave --start or --autoencoder out")
    if own:
        raise ValueError(f"--start brings its own {own[0]}: leave --{own[0].replace('_', '-')} out")
    condition = run.condition or (has if _is_known(has, run.data) else None)
    if run.config.lora and condition == "caption" != has:
        raise ValueError(f"adapters cannot learn words, which {run.start} does not know: leave --lora out")
    options = {name: card[name] for name in pretrained.NEEDED}
    if condition != has:
        options["network"] = {name: value for name, value in card["network"].items() if name != "cond_dim"}
    config = replace(run.config, sigma_data=card.get("sigma_data", TrainConfig.sigma_data), **options)
    before = {"name": Path(run.start).stem} | {name: card.get(name, 0) for name in COUNTED}
    autoencoder = pretrained.autoencoder_of(run.start, card)
    size, aspect = card.get("size", default_size(run.data)), run.aspect
    if run.data not in sets.LICENCES and aspect is None:
        aspect = card.get("aspect", ASPECT)
    run = replace(run, size=size, aspect=aspect, condition=condition, autoencoder=autoencoder, config=config)
    return run, before, has


def _is_known(condition: str | None, data: str) -> bool:
    """Whether pictures have what weights were conditioned on: own ones have classes where they lie in subfolders."""
    if condition == "body_type":
        return data == "stanford_cars"
    inside = Path(data).iterdir() if condition == "class" and Path(data).is_dir() else ()
    return condition != "class" or data in ("letters", "stanford_cars") or any(path.is_dir() for path in inside)


def _device(record: StepRecord) -> torch.device:
    return next(record.denoiser.net.parameters()).device
