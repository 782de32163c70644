"""One training loop, used by the notebooks and by `python -m diffusion_utils train` alike.

`train` is a generator: it does the work and hands out a record every few steps; whoever consumes
it decides what to print, plot or draw.  What happens in step k depends on the seed and k alone
(pictures, flips, timesteps, noise), so a run that was stopped and resumed equals one that was not,
and two processes, each taking its slice of the same batch, train the same model as one.

On a GPU the host runs ahead of the device and never waits for it inside the loop, but
- for a record or a checkpoint, which are made of the device's numbers;
- in float16, whether the gradients of the step have overflowed: then it is skipped;
- under several processes, for the clock and the signals of the first, which all follow (`_agree`).
Signals are looked at on the host.  A clock there runs ahead, too, by the few steps that the device has in store.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast
from torch import Tensor, nn

from diffusion_utils import networks
from diffusion_utils.files import keep_freed_memory
from diffusion_utils.networks import TextToImage, lora
from diffusion_utils.networks.autoencoder import autoencoder_loss
from diffusion_utils.prediction import Denoiser, min_snr_weight
from diffusion_utils.training import arithmetic
from diffusion_utils.training.batches import Batch, Batches
from diffusion_utils.training.checkpoints import CHECKPOINT, LOG, Log, TrainState, only_run, stop_on_signal
from diffusion_utils.training.config import KEPT_BY_BRANCH, TrainConfig
from diffusion_utils.training.consistency import STAGES, consistency_loss
from diffusion_utils.training.optimizers import MovingAverage, ema_update, make_optimizer
from diffusion_utils.training.perceptual import DecoderLoss, Perceptual

STARTED = ("consistency", "decoder")  # objectives that go on from trained weights
IMAGES = "images must be a uint8 tensor (N, 3, H, W), 0 … 255, or latents of variance 1, float32 (N, C, H, W)"


@dataclass(frozen=True, eq=False)
class StepRecord:
    """What `train` reports.

    Attributes:
        step: steps done so far.
        images: pictures seen so far.
        loss: mean over the steps since the last record.
        learning_rate, grad_norm: of the latest step; grad_norm before clipping, 0 if it was skipped.
        seconds: training time so far, earlier sessions of a resumed run included.
        skipped_steps: of all steps those that taught nothing, because in float16 their gradients overflowed.
        images_per_second: since the last record.
        denoiser: the moving-average network, ready to sample from.
        stopped: True on the last record when Ctrl-C or SIGTERM ended the run before its budget.
    """

    step: int
    images: int
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    images_per_second: float
    denoiser: Denoiser
    stopped: bool = False
    skipped_steps: int = 0

    def to_json(self) -> dict:
        """The numbers, for the log."""
        return {k: v for k, v in vars(self).items() if k not in ("denoiser", "stopped")}


def train(
    config: TrainConfig,
    images: Tensor,
    run_dir: str | Path | None = None,
    resume: bool = False,
    cond: Tensor | None = None,
    start: nn.Module | None = None,
    begin: Callable[[], None] | None = None,
    branch: str | Path | None = None,
) -> Iterator[StepRecord]:
    """Train a denoiser; yields a record every `config.log_every` steps and at the end.

    Args:
        config: what to learn and for how long.
        images: uint8 (N, 3, H, W), or float32 (N, C, H, W), latents of variance 1; moved to the device
            once, as a whole.
        run_dir: folder for `checkpoint.pt` and `log.jsonl`; None keeps nothing.
        resume: go on from the checkpoint in `run_dir`, or start there if it has none yet.  A run
            whose budget is used yields one record and learns nothing more.
        cond: one condition per picture, (N, *net.cond_shape), for a network that takes conditions; a row of
            zeros is none.  (N, K, *net.cond_shape) gives each picture K conditions to choose from.
            Networks for super-resolution make their own.
        start: a trained network, to begin with its weights instead of random ones: of the same form, or
            the picture network of a `TextToImage`, which then only has to learn the text; see `begin_with`.
        begin: called once, when all has been checked and before the first step: writes what belongs beside the
            checkpoint.
        branch: folder of another run, whose weights, average and optimizer this one takes over; their
            configurations may differ, but for `KEPT_BY_BRANCH`.  Give it another seed, or it sees the same pictures
            in the same order again.

    Under `accelerate launch` every process runs this and takes its share of each batch.

    Raises:
        ValueError: pictures or configuration unfit, or a resumed run that learns something else.
        FileExistsError: `run_dir` already holds a run and `resume` is False, or another run is going on there.
        FloatingPointError: the numbers grow beyond all bounds; the last checkpoint stays.
    """
    if not isinstance(config, TrainConfig) or not torch.is_grad_enabled():
        raise ValueError("training takes a TrainConfig, and gradients: call it outside of torch.no_grad()")
    if run_dir == "" or resume and run_dir is None:
        raise ValueError("run_dir is missing: give the folder of the run")
    run_dir = None if run_dir is None else Path(run_dir)
    resumed = bool(run_dir) and (run_dir / CHECKPOINT).exists()
    if resumed and not resume:
        raise FileExistsError(f"{run_dir} already holds a run: resume it (--resume) or choose another folder")
    if start is not None and branch is not None:
        raise ValueError("start and branch both say what to begin with: give one of them")
    if config.objective in STARTED and start is None and branch is None and not resumed:
        raise ValueError(f"objective {config.objective!r} tunes a trained network: give start (--start WEIGHTS)")
    if config.lora and start is None and branch is None and not resumed:
        raise ValueError("lora adapts a trained network: give start (--start WEIGHTS)")
    _check_images(images)
    if config.feature_weight and images.dtype != torch.uint8:
        raise ValueError("feature_weight compares pictures, not latents: give uint8 pictures, or leave it out")
    config.progress(0, 0)  # an error where there is no budget, before anything is done
    accelerator = _accelerator(config)
    if accelerator.device.type == "cpu":
        keep_freed_memory()

    state = _new_state(config, accelerator.device, start if not resumed else None)
    if branch is not None and not resumed:
        free = {option.name for option in fields(config)}.difference(KEPT_BY_BRANCH)
        state.learnt(Path(branch) / CHECKPOINT, config, accelerator.device, free)
    if cond is not None:
        cond = cond.to(accelerator.device, torch.int64 if isinstance(state.net, TextToImage) else torch.float32)
    share = (accelerator.process_index, accelerator.num_processes)
    batches = Batches(images.to(accelerator.device), cond, state.net, config, share)
    _check_fit(config, state, batches)
    with only_run(run_dir) if run_dir and accelerator.is_main_process else nullcontext():
        if resumed:
            state.restore(run_dir / CHECKPOINT, config, accelerator.device)
        elif run_dir and accelerator.is_main_process and (run_dir / CHECKPOINT).exists():
            raise FileExistsError(f"another run was in {run_dir} just now: choose another folder")
        objective, optimizer = _prepared(config, state, batches, accelerator)
        log = Log(run_dir / LOG, state.step) if run_dir and accelerator.is_main_process else None
        if begin and accelerator.is_main_process:
            begin()
        yield from _steps(config, state, objective, optimizer, batches, accelerator, log)
    accelerator.free_memory()


def _prepared(
    config: TrainConfig, state: TrainState, batches: Batches, accelerator: Accelerator
) -> tuple[Callable[[Batch, float], Tensor], torch.optim.Optimizer]:
    """The objective and the optimizer of `state`, for this process and device; compiled where that pays."""
    net, optimizer = accelerator.prepare(state.net, state.optimizer)
    device = accelerator.device
    network = arithmetic.Network(net, device, arithmetic.precision_on(device, config.mixed_precision))
    objective = make_objective(config, _denoiser(config, network), state.decoder_loss)
    progress = config.progress(state.step, state.seconds)
    if progress < 1 and arithmetic.choose_compile(config, arithmetic.capability(device), progress):
        batch = batches[state.step]
        network.try_compiled(lambda: objective(batch, progress).backward(), must=config.compile == "yes")
    return objective, optimizer


def _steps(
    config: TrainConfig,
    state: TrainState,
    objective: Callable[[Batch, float], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    accelerator: Accelerator,
    log: Log | None,
) -> Iterator[StepRecord]:
    """The loop itself, from `state` to the end of the budget; `log`: where the run is kept, if this process does."""
    ema_denoiser, scaler = _denoiser(config, state.ema.module), state.scaler
    started = time.perf_counter() - state.seconds
    meter = _Meter(config, state, ema_denoiser, accelerator)
    progress, stop = config.progress(state.step, state.seconds), False
    if progress >= 1:  # a finished run, resumed: hand out what it learnt, for a caller that died then
        loss = log.kept[-1].get("loss", math.nan) if log and log.kept else math.nan
        images, skipped = state.step * config.batch_size, state.skipped_steps
        yield StepRecord(state.step, images, loss, 0.0, 0.0, state.seconds, 0.0, ema_denoiser, skipped_steps=skipped)
    with stop_on_signal() as stop_asked:
        while progress < 1 and not stop:
            learning_rate = config.learning_rate_at(state.step, progress)
            for group in optimizer.param_groups:  # a branch has its trunk's groups, but its own settings
                group["lr"], group["weight_decay"] = learning_rate, config.weight_decay
            loss = objective(batches[state.step], progress)
            accelerator.backward(scaler.scale(loss))  # a scaler that is not enabled changes nothing
            scaler.unscale_(optimizer)
            grad_norm = accelerator.clip_grad_norm_(state.net.parameters(), config.clip_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if scaler.is_enabled() and not grad_norm.isfinite():
                state.skipped_steps += 1  # its pictures count as seen; in the average no weights count twice
                grad_norm = 0.0
            else:
                state.ema.update_parameters(state.net)
            meter.losses.append(loss.detach())
            state.step += 1
            state.seconds, stop = _agree(time.perf_counter() - started, stop_asked(), accelerator)
            progress = config.progress(state.step, state.seconds)

            finished = progress >= 1 or stop
            log_due = finished or state.step % config.log_every == 0
            save_due = finished or state.step % config.checkpoint_every == 0
            if log_due or save_due:
                mean_loss = meter.mean_loss()
                check_finite(state, mean_loss, float(grad_norm))  # before saving: a good checkpoint stays good
            if log_due:
                record = meter.record(mean_loss, learning_rate, float(grad_norm), stopped=progress < 1 and stop)
                if log:
                    log.write(record.to_json())
            if save_due and log:  # after the log: killed in between, a resumed run writes the line again
                state.save(log.path.with_name(CHECKPOINT), config)
            if log_due:
                handed_out = time.perf_counter()
                yield record
                started += time.perf_counter() - handed_out  # what the caller does is not training


def make_objective(
    config: TrainConfig, denoiser: Denoiser, decoder_loss: DecoderLoss | None = None
) -> Callable[[Batch, float], Tensor]:
    """What a step lowers: a function of its batch and of the share of the budget used, in [0, 1], to a scalar."""
    perceptual = Perceptual() if config.feature_weight else None

    def denoising(batch: Batch, progress: float) -> Tensor:
        weight = None
        if config.min_snr_gamma is not None:
            snr = denoiser.schedule.snr(batch.t).to(batch.x0)
            weight = min_snr_weight(
                config.prediction_type, snr, config.min_snr_gamma, config.sigma_data, config.snr_floor
            )
        return features(batch, weight) if perceptual else denoiser.loss(*batch, weight)

    def features(batch: Batch, weight: Tensor | None) -> Tensor:
        x0, noise, t, cond = batch
        alpha, sigma = denoiser.schedule.alpha_sigma(t, like=x0)
        x0_hat = denoiser.predict(alpha * x0 + sigma * noise, t, alpha, sigma, cond)
        error = (x0_hat - x0).square().mean(dim=(1, 2, 3))  # what a network that predicts x₀ learns
        seen = perceptual.to(x0.device)(x0_hat, x0) * (alpha >= sigma).flatten()
        return ((error if weight is None else error * weight) + config.feature_weight * seen).mean()

    def consistency(batch: Batch, progress: float) -> Tensor:
        return consistency_loss(denoiser, batch.x0, batch.noise, batch.t, int(progress * STAGES), batch.cond)

    def autoencoder(batch: Batch, progress: float) -> Tensor:
        return autoencoder_loss(denoiser.net, batch.x0, batch.noise, config.kl_weight)

    def decoder(batch: Batch, progress: float) -> Tensor:
        return decoder_loss(denoiser.net, batch.x0, batch.noise, progress)

    objectives = {"denoising": denoising, "consistency": consistency, "autoencoder": autoencoder, "decoder": decoder}
    return objectives[config.objective]


def begin_with(net: nn.Module, start: nn.Module) -> None:
    """Put a trained network's weights into `net`, or into its picture network where `net` is a
    `TextToImage` and the start is none: then what has to do with the text stays new.  What the start knew of
    conditions is left behind where `net` takes none, or another number of them.

    Raises:
        ValueError: the start is a network of another form.
    """
    whole, cond = not isinstance(net, TextToImage) or isinstance(start, TextToImage), f"{lora.ANEW}.weight"
    into, weights = (net if whole else net.net), start.state_dict()
    own = into.state_dict()
    if cond in weights and not (whole and cond in own and own[cond].shape == weights[cond].shape):
        del weights[cond]
    new = [name for name in own if name not in weights]
    fits = weights.keys() <= own.keys() and all(own[name].shape == value.shape for name, value in weights.items())
    if not fits or any(name != cond and (whole or ".cross." not in name) for name in new):
        raise ValueError("the network to start with has another form than the one to be trained: give it its options")
    into.load_state_dict({**own, **weights})


def check_finite(state: TrainState, loss: float, grad_norm: float) -> None:
    """Raise a FloatingPointError if the loss, the gradient or the averaged weights have left the numbers that can
    be stored: weights are kept in half precision."""
    largest = torch.stack([w.abs().amax().float() for w in state.ema.state_dict().values() if w.is_floating_point()])
    values = {"loss": loss, "length of the gradient": grad_norm, "largest weight": largest.amax().item()}
    for name, value in values.items():
        if not abs(value) <= (torch.finfo(torch.float16).max if name == "largest weight" else sys.float_info.max):
            raise FloatingPointError(
                f"the {name} is {value:.4g} after {state.step} steps: lower learning_rate or set mixed_precision "
                "to 'no'"
            )
    if state.scaler.is_enabled() and state.scaler.get_scale() < arithmetic.LEAST_SCALE:
        raise FloatingPointError(
            f"the gradients overflow in float16, however they are scaled, after {state.step} steps: lower "
            "learning_rate or set mixed_precision to 'no'"
        )


class _Meter:
    """What was measured since the last record."""

    def __init__(self, config: TrainConfig, state: TrainState, denoiser: Denoiser, accelerator: Accelerator):
        self.config, self.state, self.denoiser, self.accelerator = config, state, denoiser, accelerator
        self.losses, self.step, self.seconds = [], state.step, state.seconds

    def mean_loss(self) -> float:
        """Over all processes."""
        return self.accelerator.reduce(torch.stack(self.losses).mean(), "mean").item()

    def record(self, loss: float, learning_rate: float, grad_norm: float, stopped: bool) -> StepRecord:
        """The next record, after which the measuring begins anew."""
        step, seconds, batch_size = self.state.step, self.state.seconds, self.config.batch_size
        images, since = step * batch_size, (step - self.step) * batch_size
        rate, skipped = since / max(1e-9, seconds - self.seconds), self.state.skipped_steps
        self.losses, self.step, self.seconds = [], step, seconds
        return StepRecord(step, images, loss, learning_rate, grad_norm, seconds, rate, self.denoiser, stopped, skipped)


def _check_images(images: Tensor) -> None:
    """Raise a ValueError for pictures that cannot be trained on."""
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.numel():
        shape = getattr(images, "shape", None)
        raise ValueError(f"{IMAGES}, with N ≥ 1, not {type(images).__name__} {tuple(shape) if shape else ''}".rstrip())
    if images.dtype == torch.uint8:
        return
    if images.dtype != torch.float32:
        raise ValueError(f"{IMAGES}, not {images.dtype} {tuple(images.shape)}")
    # Pictures as floats, in [0, 1], [-1, 1] or 0 … 255, are a slip that would train without a word.
    low, high = images.min().item(), images.max().item()
    if not images.square().mean() < 100 or images.abs().max() <= 1:
        kind = "look like pictures, so give them as uint8" if math.isfinite(high) else "are no latents"
        raise ValueError(f"{IMAGES}: numbers from {low:.2g} to {high:.2g} {kind}")


def _check_fit(config: TrainConfig, state: TrainState, batches: Batches) -> None:
    """Raise a ValueError if the network cannot take the first picture, before a folder is made for what it learns."""
    x0, noise, t, cond = (part if part is None else part[:1] for part in batches[0])
    _denoiser(config, state.ema.module)  # which knows what does not go together
    inputs = (x0, noise) if config.reconstructs else (x0, t) if cond is None else (x0, t, cond)
    try:
        with torch.no_grad():
            state.ema.module(*inputs)  # in evaluation mode: nothing in it changes
    except (RuntimeError, TypeError) as error:
        shape, reason = tuple(x0.shape[1:]), str(error).splitlines()[0]
        raise ValueError(f"network {config.network['name']!r} cannot take pictures {shape}: {reason}") from None


def _denoiser(config: TrainConfig, net: nn.Module) -> Denoiser:
    return Denoiser(net, config.make_schedule(), config.prediction_type, config.sigma_data)


def _new_state(config: TrainConfig, device: torch.device, start: nn.Module | None) -> TrainState:
    """An untrained network, or one that begins with another's weights; its average and optimizer."""
    if config.network is None or config.sigma_data is None:
        raise ValueError("say what to train: network and sigma_data are None")
    torch.manual_seed(config.seed)  # the same initial weights on every process
    net = networks.build(**config.network).to(device)
    if start is not None:
        begin_with(net, start)
    if config.lora:
        lora.add(net, config.lora)
    if device.type == "cpu":  # as convolutions compute there; on GPUs group norms would put everything back
        net.to(memory_format=torch.channels_last)
    decoder_loss = None
    if config.objective == "decoder":
        net.encoder.requires_grad_(False)
        decoder_loss = DecoderLoss(config.perceptual_weight, config.adversarial_weight, device)
    ema = MovingAverage(net, multi_avg_fn=ema_update(config.ema_decay)).eval()
    optimizer = make_optimizer(config.optimizer, net, config.learning_rate, config.weight_decay)
    half = arithmetic.precision_on(device, config.mixed_precision) == "fp16"
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    return TrainState(net, ema, optimizer, scaler, decoder_loss=decoder_loss)


def _accelerator(config: TrainConfig) -> Accelerator:
    AcceleratorState._reset_state()  # a notebook may well train twice
    accelerator = Accelerator(mixed_precision="no", dynamo_backend="no")  # both are ours, see `arithmetic`
    check_share(config, accelerator.num_processes)
    return accelerator


def check_share(config: TrainConfig, processes: int) -> None:
    """Raise a ValueError if a batch cannot be shared equally, or not at all."""
    if config.objective == "decoder" and processes > 1:
        raise ValueError("objective 'decoder' trains a critic, which is not shared: start it in one process")
    if config.batch_size % processes:
        raise ValueError(f"batch_size {config.batch_size} is no multiple of the {processes} processes")


def _agree(seconds: float, stop: bool, accelerator: Accelerator) -> tuple[float, bool]:
    """Process 0 decides, so that all processes keep one clock and stop at the same step."""
    if accelerator.num_processes == 1:
        return seconds, stop
    decision = torch.tensor([seconds, float(stop)], dtype=torch.float64, device=accelerator.device)
    seconds, stop = broadcast(decision, from_process=0).tolist()
    return seconds, bool(stop)
