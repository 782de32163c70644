"""What a training run is asked to do, as values that checkpoints, run folders and model cards can store."""

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from diffusion_utils.checks import check_kind
from diffusion_utils.data.pictures import ASPECT, in_whole_numbers
from diffusion_utils.data.sets import LICENCES, Condition
from diffusion_utils.prediction import PredictionType
from diffusion_utils.sampling import checked_seeds
from diffusion_utils.schedule import Schedule, ScheduleName, make_schedule

Precision = Literal["auto", "no", "bf16", "fp16"]
BUDGET = ("steps", "images", "minutes")
# What may differ when a run is resumed: when to stop and how often to report, not what is learnt.
FREE_ON_RESUME = {*BUDGET, "log_every", "checkpoint_every"}
# What a branch shares with the run that it leaves: what its network and optimizer are.
NOISE = ("schedule", "num_train_timesteps", "zero_terminal_snr")
KEPT_BY_BRANCH = ("network", "lora", "prediction_type", "sigma_data", *NOISE, "objective", "optimizer")


@dataclass(frozen=True)
class TrainConfig:
    """What a run learns, and how: stored in its checkpoint and on its model card.

    Raises:
        ValueError: a value out of its range, or values that do not go together.
    """

    # Name and options for `networks.build`; on the command line JSON, '{"name": "resnet", "stem": 4}', and by
    # default what suits the pictures.
    network: dict | None = field(default_factory=lambda: {"name": "resnet"})
    # What the network predicts: the noise, the picture, or a mixture; see `prediction`.
    prediction_type: PredictionType = "sample"
    # For edm, the pictures' root mean square, see `prediction`; on the command line by default measured.
    sigma_data: float | None = 0.5
    schedule: ScheduleName = "cosine"  # The noise schedule's form; see `schedule`.
    num_train_timesteps: int = 1000  # T, the number of timesteps.
    zero_terminal_snr: bool = False  # Stretch the schedule so that nothing of the picture is left at the end.
    # "uniform" draws every t equally often; "lognormal" draws ln(σ/α) from a normal distribution (mean -1.2,
    # deviation 1.2: Karras et al. 2022, table 1), so that the middle noise levels are seen most; "logitnormal" the
    # same with mean 0 and deviation 1 (of flow matching's τ that is the logit: Esser et al. 2024, 2403.03206).
    timestep_sampling: Literal["uniform", "lognormal", "logitnormal"] = "uniform"
    # Weigh the loss by Min-SNR-γ, 5 in the paper; None: every timestep counts the same.
    min_snr_gamma: float | None = None
    # With min_snr_gamma, the least weight of an error of x̂₀; see `prediction.min_snr_weight`.
    snr_floor: float = 0.0
    # With --start: leave its weights alone, and learn low-rank adapters of this rank beside them (Hu et al. 2021,
    # 2106.09685), such as 4; the file then holds those alone, and the weights it started with must be kept.
    lora: int | None = None
    # How much it counts, beside the error of x̂₀, that EfficientNet-Lite1 sees in x̂₀ what it sees in the picture, where
    # no more than half of x_t is noise (α ≥ σ); with prediction type sample, on pixels.  See `perceptual.Perceptual`.
    feature_weight: float = 0.0
    # "denoising" learns x̂₀ from noisy pictures; "consistency" tunes a trained denoiser to draw in one or two
    # steps; "autoencoder" trains an autoencoder, to which timesteps and the like mean nothing; "decoder" trains
    # the decoder of a trained one on, and leaves its latents as they are; see `perceptual`.
    objective: Literal["denoising", "consistency", "autoencoder", "decoder"] = "denoising"
    kl_weight: float = 1e-3  # Of objective autoencoder: the pull towards the normal distribution.
    perceptual_weight: float = 1.0  # Of objective decoder: that a trained network sees the same; 0: leave that out.
    # Of objective decoder: the share of the critic that tells its pictures from photographs; 0: without one.
    adversarial_weight: float = 0.5
    steps: int | None = None  # Stop after so many steps; of several limits the first that is reached counts.
    images: int | None = None  # Stop after so many pictures.
    minutes: float | None = None  # Stop after so many minutes of training.
    batch_size: int = 64  # Pictures per step, over all processes together.
    # AdamW, or Muon for the weight matrices and AdamW for the rest.
    optimizer: Literal["adamw", "muon"] = "adamw"
    # The peak, after `warmup_steps` of linear rise and until the last `decay_fraction` of the budget.
    learning_rate: float = 1e-3
    weight_decay: float = 0.01  # Share of each weight that the optimizer takes away, times the learning rate.
    warmup_steps: int = 200  # Steps over which the learning rate rises.
    decay_fraction: float = 0.4  # Share of the budget over which the learning rate falls to 0, at the end.
    clip_grad_norm: float = 1.0  # The longest gradient that a step follows; longer ones are shortened.
    ema_decay: float = 0.999  # Of the moving average of the weights, the network that is used afterwards.
    # Share of the pictures whose condition is withheld, so that the network also learns to draw without one: what
    # classifier-free guidance needs (Ho & Salimans 2022, 2207.12598, algorithm 1).
    cond_dropout: float = 0.1
    # Mirror each picture left to right with probability ½, so that the network learns, and draws, either way round;
    # leave it out where left and right differ, as in letters.  Toy cars with captions never are.
    flip: bool = True
    # Move each picture by up to so many pixels, at random, up or down and left or right; what comes into the window
    # repeats the edge.  Where the network would else see each picture only in one place.
    shift: int = 0
    seed: int = 0  # Of the initial weights, the order of the pictures, the noise and the timesteps.
    # Precision of the network's arithmetic; "auto": bf16 where the device computes in it natively, else fp16 with a
    # scaled loss on NVIDIA's GPUs with tensor cores (a T4), else float32 (no).
    mixed_precision: Precision = "auto"
    # Use torch.compile; "auto": on a GPU that can, where the budget is long enough to earn it.
    compile: Literal["auto", "no", "yes"] = "auto"
    log_every: int = 20  # Steps from one record to the next.
    checkpoint_every: int = 500  # Steps from one checkpoint to the next.

    def __post_init__(self):
        _check_kinds(self)
        for name in _POSITIVE:
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, not {getattr(self, name)}")
        if self.network is not None and not isinstance(self.network.get("name"), str):
            raise ValueError(f'network needs a name, such as {{"name": "resnet"}}, not {self.network}')
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError("warmup_steps and weight_decay must be at least 0")
        if not 0 <= self.shift <= 32:
            raise ValueError(f"shift must lie in [0, 32] pixels, not {self.shift}")
        checked_seeds([self.seed])
        for name in ("cond_dropout", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), not {self.ema_decay}")
        for name in ("kl_weight", "perceptual_weight", "adversarial_weight", "feature_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.snr_floor and self.min_snr_gamma is None:
            raise ValueError("snr_floor is the least of the Min-SNR weights: give min_snr_gamma, too, such as 5")
        if self.min_snr_gamma is not None and not 0 <= self.snr_floor <= self.min_snr_gamma:
            raise ValueError(f"snr_floor must lie in [0, min_snr_gamma = {self.min_snr_gamma}], not {self.snr_floor}")
        if self.snr_floor and self.prediction_type == "epsilon":
            raise ValueError(
                "snr_floor would weigh an error in ε by floor/SNR, without limit: use sample or v_prediction"
            )
        ends_in_noise = "schedule flow" if self.schedule == "flow" else self.zero_terminal_snr and "zero_terminal_snr"
        if self.prediction_type == "epsilon" and ends_in_noise:
            raise ValueError(
                "epsilon prediction cannot learn where no signal is left: use sample or v_prediction, or leave "
                f"{ends_in_noise} out"
            )
        if self.objective == "consistency" and self.min_snr_gamma is not None:
            raise ValueError("objective 'consistency' weighs its loss in its own way: leave min_snr_gamma out")
        if self.objective == "consistency" and ends_in_noise:
            raise ValueError(f"objective 'consistency' needs a little signal everywhere: leave {ends_in_noise} out")
        if self.lora is not None and self.reconstructs:
            raise ValueError(f"lora adapts a denoiser: leave it out with objective {self.objective!r}")
        if self.feature_weight and (self.objective, self.prediction_type) != ("denoising", "sample"):
            raise ValueError(
                "feature_weight compares the picture that the network answers with: it goes with objective 'denoising' "
                "and prediction type 'sample' only"
            )
        if self.objective == "decoder" and self.compile == "yes":
            raise ValueError("objective 'decoder' follows gradients that compiled code drops: leave compile out")
        if self.network is not None and self.reconstructs != (self.network.get("name") == "autoencoder"):
            raise ValueError(
                "objective 'autoencoder' (or 'decoder') and network 'autoencoder' belong together: give both or neither"
            )

    @property
    def reconstructs(self) -> bool:
        """Whether it is an autoencoder that is trained."""
        return self.objective in ("autoencoder", "decoder")

    def make_schedule(self) -> Schedule:
        """The schedule this run trains on."""
        return make_schedule(self.schedule, self.num_train_timesteps, self.zero_terminal_snr)

    def progress(self, step: int, seconds: float) -> float:
        """How much of the budget is used, in [0, 1], after `step` steps and `seconds` of training.

        Raises:
            ValueError: there is no budget: neither steps nor images nor minutes.
        """
        used = [(step, self.steps), (step * self.batch_size, self.images), (seconds / 60, self.minutes)]
        shares = [done / total for done, total in used if total is not None]
        if not shares:
            raise ValueError("say when to stop: give steps, images or minutes")
        return min(1.0, max(shares))

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Warm-up, plateau, linear decay."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay = min(1.0, (1 - progress) / self.decay_fraction) if self.decay_fraction else 1.0
        return self.learning_rate * warmup * decay


def _check_kinds(options) -> None:
    """Raise a ValueError if a field holds something of another kind than it is declared with."""
    for option in fields(options):
        value = getattr(options, option.name)
        endless = option.name in _ENDLESS and value == math.inf
        if option.type is not Path and not endless:  # for a path, tyro has a placeholder while it reads
            check_kind(option.name, value, option.type)


_ENDLESS = {"clip_grad_norm", "min_snr_gamma"}  # no limit
_POSITIVE = {*BUDGET, "lora", "sigma_data", "min_snr_gamma", "batch_size", "learning_rate", "clip_grad_norm"}
_POSITIVE |= {"num_train_timesteps", "log_every", "checkpoint_every"}


@dataclass(frozen=True)
class Run:
    """A training from the command line: its pictures, its folder, and what it learns."""

    out: Path  # Folder of the run.
    # What to learn from: toy_cars, letters, stanford_cars, or a folder of pictures, of which one in ten is held out to
    # measure with, chosen by its file name.
    data: str = "toy_cars"
    resume: bool = False  # Go on from the checkpoint in --out, with its settings; the budget may be another.
    size: int | None = None  # Pixels per side; default: 64, toy cars 32.
    # Width:height of the window that is cut out of own pictures, such as 1:1 or 3:2; default: 4:3 where most of
    # them are about that wide, else 1:1.
    aspect: str | None = None
    # What the network is conditioned on: each picture's body type, its class (which letter it is; of own pictures
    # the subfolder it lies in), a caption in words (text to image), or the picture itself at half the size
    # (super-resolution).
    condition: Condition | None = None
    autoencoder: str | None = None  # Weights of one: learn its latents of the pictures instead of their pixels.
    # Weights to begin with, a name or a path; network, schedule and prediction type are theirs.
    start: str | None = None
    # Folder of another run: go on from its checkpoint, optimizer and average of the weights included, with other
    # options; what is left out is as there, but for the budget, the seed (the next one) and the warm-up (none).
    branch: str | None = None
    sample_every: int = 2000  # Draw a grid every so many steps; 0: only at the end.
    snapshot_images: int = 0  # Keep the averaged weights every so many pictures, in snapshots/; 0: never.
    config: TrainConfig = field(default_factory=TrainConfig)

    AUTOENCODER = "autoencoder.safetensors"  # a run that learns latents keeps a copy of that in its folder

    def __post_init__(self):
        _check_kinds(self)
        for name in ("data", "start", "branch", "autoencoder"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} is empty: give a name or a path, or leave --{name} out")
        if self.size is not None and not 8 <= self.size <= 1024:
            raise ValueError(f"size must lie in [8, 1024] pixels, not {self.size}")
        if self.aspect is not None:
            object.__setattr__(self, "aspect", in_whole_numbers(self.aspect))
        if self.sample_every < 0 or self.snapshot_images < 0:
            raise ValueError("sample_every and snapshot_images must be at least 0")
        if self.config.reconstructs and (self.condition or self.autoencoder):
            raise ValueError(
                "an autoencoder takes no condition and no other one: leave --condition and --autoencoder out"
            )
        if self.autoencoder and self.config.feature_weight:
            raise ValueError("feature_weight compares pictures, not latents: leave it or --autoencoder out")
        if self.autoencoder and self.config.shift:
            raise ValueError("shift moves pictures by pixels, not latents: leave it or --autoencoder out")
        if self.autoencoder and self.condition == "low_resolution":
            raise ValueError("super-resolution works on pixels here: leave --autoencoder out")

    def to_json(self) -> dict:
        """The run without its place, so that the folder can be moved."""
        stored = {name: value for name, value in asdict(self).items() if name not in ("out", "resume")}
        if self.autoencoder == str(self.out / self.AUTOENCODER):
            stored["autoencoder"] = self.AUTOENCODER
        return stored

    @classmethod
    def from_folder(cls, out: Path) -> tuple["Run", dict]:
        """The run that a folder holds, to be resumed, and all that its run.json says.

        Raises:
            ValueError: it is damaged or foreign.
        """
        try:
            contents = json.loads((out / "run.json").read_bytes())
            if not isinstance(contents, dict) or not isinstance(contents.get("before") or {}, dict):
                raise ValueError("its entries are missing")
            if missing := [name for name in ("data", "size", "config") if name not in contents]:
                raise ValueError(f"it lacks {', '.join(missing)}")
            options = {option.name: contents[option.name] for option in fields(cls) if option.name in contents}
            if options.get("data") not in (None, *LICENCES):
                options.setdefault("aspect", ASPECT)  # of own pictures, before there was a choice
            run = cls(**options | {"out": out, "resume": True, "config": TrainConfig(**contents["config"])})
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{out / 'run.json'} does not describe a run of this package ({error}): put it back, or choose another "
                "folder"
            ) from None
        inside = run.autoencoder == cls.AUTOENCODER
        return (replace(run, autoencoder=str(out / cls.AUTOENCODER)) if inside else run), contents
