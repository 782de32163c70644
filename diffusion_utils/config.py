"""What a training run is asked to do, as one value that checkpoints and model cards can store."""

from dataclasses import dataclass, field

from diffusion_utils.prediction import PREDICTION_TYPES
from diffusion_utils.schedule import Schedule, make_schedule

BUDGET = ("steps", "images", "minutes")
# What may differ when a run is resumed: when to stop and how often to report, not what is learnt.
FREE_ON_RESUME = {*BUDGET, "log_every", "checkpoint_every"}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run learns; stored in its checkpoint and its model card.

    Attributes:
        network: name and options for `networks.build`, e.g. {"name": "resnet", "stem": 4}.
        prediction_type: "epsilon", "sample", "v_prediction" or "edm".
        sigma_data: for "edm", the pictures' root mean square; see `prediction`.
        schedule, num_train_timesteps, zero_terminal_snr: for `schedule.make_schedule`.
        timestep_sampling: "uniform" draws every t equally often; "lognormal" draws ln(σ/α) from a normal
            distribution (mean -1.2, deviation 1.2: Karras et al. 2022, table 1) and takes the t that
            comes next, so that the middle noise levels are seen most.
        min_snr_gamma: weigh the loss by Min-SNR-γ; None: every timestep counts the same.
        snr_floor: with min_snr_gamma, the least weight of an error of x̂₀; see `prediction.min_snr_weight`.
        objective: "denoising" learns x̂₀ from noisy pictures; "consistency" tunes a denoiser that is
            trained already to draw in one or two steps (see `consistency`); "autoencoder" trains an
            `Autoencoder`, to which timesteps and the like mean nothing.
        kl_weight: of "autoencoder"; see `networks.autoencoder.autoencoder_loss`.
        steps, images, minutes: when to stop; the first that is reached (None: no limit by it).
        optimizer: "adamw", or "muon": `optimizers.Muon` for the weight matrices, AdamW for the rest.
        batch_size: pictures per step, over all processes together.
        learning_rate: the peak, after `warmup_steps` of linear rise and until the last
            `decay_fraction` of the budget, over which it falls linearly to 0.
        ema_decay: of the exponential moving average of the weights, the network that is used.
        cond_dropout: share of the pictures whose description is withheld (set to zeros), so that the
            network also learns to draw without one: what classifier-free guidance needs (Ho & Salimans
            2022, 2207.12598, algorithm 1).  Counts only where `train` is given descriptions.
        flip: mirror each picture left to right with probability ½.
        mixed_precision: "bf16", "no", or "auto": bf16 where the device computes in it natively.
        compile: torch.compile; "auto": on a GPU.
        log_every, checkpoint_every: in steps.
    """

    network: dict = field(default_factory=lambda: {"name": "resnet"})
    prediction_type: str = "sample"
    sigma_data: float = 0.5
    schedule: str = "cosine"
    num_train_timesteps: int = 1000
    zero_terminal_snr: bool = False
    timestep_sampling: str = "uniform"
    min_snr_gamma: float | None = None
    snr_floor: float = 0.0
    objective: str = "denoising"
    kl_weight: float = 1e-3
    steps: int | None = None
    images: int | None = None
    minutes: float | None = None
    batch_size: int = 64
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 200
    decay_fraction: float = 0.4
    clip_grad_norm: float = 1.0
    ema_decay: float = 0.999
    cond_dropout: float = 0.1
    flip: bool = True
    seed: int = 0
    mixed_precision: str = "auto"
    compile: str = "auto"
    log_every: int = 20
    checkpoint_every: int = 500

    def __post_init__(self):
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"unknown prediction_type {self.prediction_type!r}: choose one of {', '.join(PREDICTION_TYPES)}"
            )
        if all(getattr(self, name) is None for name in BUDGET):
            raise ValueError("say when to stop: give steps, images or minutes")
        for name in (
            *BUDGET,
            "sigma_data",
            "min_snr_gamma",
            "batch_size",
            "learning_rate",
            "log_every",
            "checkpoint_every",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be greater than 0, not {value}")
        if self.snr_floor and self.min_snr_gamma is None:
            raise ValueError("snr_floor is the least of the Min-SNR weights: give min_snr_gamma, too, such as 5")
        if self.min_snr_gamma is not None and not 0 <= self.snr_floor <= self.min_snr_gamma:
            raise ValueError(
                f"snr_floor must lie between 0 and min_snr_gamma {self.min_snr_gamma}, not {self.snr_floor}"
            )
        if self.snr_floor and self.prediction_type == "epsilon":
            raise ValueError(
                "snr_floor would weigh an error in ε by floor/SNR, without limit: ask for sample or v_prediction"
            )
        if self.objective == "consistency" and self.min_snr_gamma is not None:
            raise ValueError("objective 'consistency' weighs its loss in its own way: leave min_snr_gamma out")
        if self.objective == "consistency" and self.zero_terminal_snr:
            raise ValueError("objective 'consistency' needs a little signal everywhere: leave zero_terminal_snr out")
        if (self.objective == "autoencoder") != (self.network.get("name") == "autoencoder"):
            raise ValueError("objective 'autoencoder' and network 'autoencoder' belong together: give both or neither")
        if not self.kl_weight >= 0:
            raise ValueError(f"kl_weight must be at least 0, not {self.kl_weight}")
        if not 0 <= self.cond_dropout <= 1:
            raise ValueError(f"cond_dropout must lie in [0, 1], not {self.cond_dropout}")
        if not 0 <= self.ema_decay < 1 or not 0 <= self.decay_fraction <= 1:
            raise ValueError("ema_decay must lie in [0, 1) and decay_fraction in [0, 1]")
        for name, allowed in (
            ("mixed_precision", ("auto", "no", "bf16")),
            ("compile", ("auto", "no", "yes")),
            ("timestep_sampling", ("uniform", "lognormal")),
            ("optimizer", ("adamw", "muon")),
            ("objective", ("denoising", "consistency", "autoencoder")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")

    def make_schedule(self) -> Schedule:
        """The schedule this run trains on."""
        return make_schedule(self.schedule, self.num_train_timesteps, self.zero_terminal_snr)

    def progress(self, step: int, seconds: float) -> float:
        """How much of the budget is used, in [0, 1], after `step` steps and `seconds` of training."""
        used = [(step, self.steps), (step * self.batch_size, self.images), (seconds / 60, self.minutes)]
        return min(1.0, max(done / total for done, total in used if total is not None))

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Warm-up, plateau, linear decay."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay = min(1.0, (1 - progress) / self.decay_fraction) if self.decay_fraction else 1.0
        return self.learning_rate * warmup * decay
