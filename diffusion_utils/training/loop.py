"""One training loop, used by the notebooks and by `python -m diffusion_utils train` alike.

`train` is a generator: it does the work and hands out a record every few steps; whoever consumes
it decides what to print, plot or draw.  What happens in step k depends on the seed and k alone
(pictures, flips, timesteps, noise), so a run that was stopped and resumed equals one that was not,
and two processes, each taking its slice of the same batch, train the same model as one.
"""

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from diffusion_utils import networks
from diffusion_utils.files import keep_freed_memory
from diffusion_utils.networks import TextToImage
from diffusion_utils.networks.autoencoder import autoencoder_loss
from diffusion_utils.prediction import Denoiser, min_snr_weight
from diffusion_utils.sampling import fold
from diffusion_utils.training.batches import Batch, Batches
from diffusion_utils.training.checkpoints import Log, TrainState, read_log, stop_on_signal
from diffusion_utils.training.config import TrainConfig
from diffusion_utils.training.consistency import STAGES, consistency_loss
from diffusion_utils.training.optimizers import ema_update, make_optimizer


@dataclass(frozen=True, eq=False)
class StepRecord:
    """What `train` reports.

    Attributes:
        step: steps done so far.
        images: pictures seen so far.
        loss: mean over the steps since the last record.
        learning_rate, grad_norm: of the latest step; grad_norm before clipping.
        seconds: training time so far, earlier sessions of a resumed run included.
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
            the picture network of a `TextToImage`, which then only has to learn the text.

    Under `accelerate launch` every process runs this and takes its share of each batch.

    Raises:
        ValueError: pictures or configuration unfit, or a resumed run that learns something else.
        FileExistsError: `run_dir` already holds a run and `resume` is False.
    """
    run_dir = run_dir and Path(run_dir)
    checkpoint = run_dir and run_dir / "checkpoint.pt"
    resumed = bool(checkpoint) and checkpoint.exists()
    if resumed and not resume:
        raise FileExistsError(f"{run_dir} already holds a run: resume it (--resume) or choose another folder")
    if config.objective == "consistency" and start is None and not resumed:
        raise ValueError("objective 'consistency' tunes a trained network: give start (--start WEIGHTS)")
    _check_images(images)
    config.progress(0, 0)  # an error where there is no budget, before anything is done
    accelerator = _accelerator(config)
    device, is_main = accelerator.device, accelerator.is_main_process
    if device.type == "cpu":
        keep_freed_memory()

    state = _new_state(config, device, start if not resumed else None)
    if cond is not None:
        cond = cond.to(device, torch.int64 if isinstance(state.net, TextToImage) else torch.float32)
    share = (accelerator.process_index, accelerator.num_processes)
    batches = Batches(images.to(device), cond, state.net, config, share)
    if resumed:
        state.restore(checkpoint, config, device)
    log = Log(run_dir / "log.jsonl", state.step) if run_dir and is_main else None
    net, optimizer = accelerator.prepare(state.net, state.optimizer)
    schedule = config.make_schedule()
    objective = make_objective(config, Denoiser(net, schedule, config.prediction_type, config.sigma_data))
    ema_denoiser = Denoiser(state.ema.module, schedule, config.prediction_type, config.sigma_data)

    started = time.perf_counter() - state.seconds
    meter = _Meter(config, state, ema_denoiser, accelerator)
    progress, stop = config.progress(state.step, state.seconds), False
    if progress >= 1:  # a finished run, resumed: hand out what it learnt, for a caller that died then
        loss = next((r["loss"] for r in reversed(read_log(run_dir / "log.jsonl"))), math.nan)
        yield StepRecord(state.step, state.step * config.batch_size, loss, 0.0, 0.0, state.seconds, 0.0, ema_denoiser)
    with stop_on_signal() as stop_asked:
        while progress < 1 and not stop:
            learning_rate = config.learning_rate_at(state.step, progress)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            loss = objective(batches[state.step], progress)
            accelerator.backward(loss)
            grad_norm = accelerator.clip_grad_norm_(net.parameters(), config.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            state.ema.update_parameters(state.net)
            meter.losses.append(loss.detach())
            state.step += 1
            state.seconds, stop = _agree(time.perf_counter() - started, stop_asked(), accelerator)
            progress = config.progress(state.step, state.seconds)

            finished = progress >= 1 or stop
            log_due = finished or state.step % config.log_every == 0
            save_due = finished or state.step % config.checkpoint_every == 0
            if log_due or save_due:
                mean_loss = meter.mean_loss()  # before saving: a good checkpoint stays good
            if log_due:
                record = meter.record(mean_loss, learning_rate, float(grad_norm), stopped=progress < 1 and stop)
                if log:
                    log.write(record.to_json())
            if save_due and checkpoint and is_main:
                state.save(checkpoint, config)  # after the log: killed in between, a resumed run writes the line again
            if log_due:
                handed_out = time.perf_counter()
                yield record
                started += time.perf_counter() - handed_out  # what the caller does is not training
    accelerator.free_memory()


def make_objective(config: TrainConfig, denoiser: Denoiser) -> Callable[[Batch, float], Tensor]:
    """What a step lowers: a function of its batch and of the share of the budget used, in [0, 1], to a scalar."""

    def denoising(batch: Batch, progress: float) -> Tensor:
        weight = None
        if config.min_snr_gamma is not None:
            snr = denoiser.schedule.snr(batch.t).to(batch.x0)
            weight = min_snr_weight(
                config.prediction_type, snr, config.min_snr_gamma, config.sigma_data, config.snr_floor
            )
        return denoiser.loss(*batch, weight)

    def consistency(batch: Batch, progress: float) -> Tensor:
        return consistency_loss(denoiser, batch.x0, batch.noise, batch.t, int(progress * STAGES), batch.cond)

    def autoencoder(batch: Batch, progress: float) -> Tensor:
        return autoencoder_loss(denoiser.net, batch.x0, batch.noise, config.kl_weight)

    return {"denoising": denoising, "consistency": consistency, "autoencoder": autoencoder}[config.objective]


def begin_with(net: nn.Module, start: nn.Module) -> None:
    """Put a trained network's weights into `net`, or into its picture network where `net` is a
    `TextToImage` and the start is none: then what has to do with the text stays new, and what the start
    knew of other conditions is left behind.

    Raises:
        ValueError: the start is a network of another form.
    """
    whole = not isinstance(net, TextToImage) or isinstance(start, TextToImage)
    into, weights = (net if whole else net.net), start.state_dict()
    if not whole:
        weights = {name: value for name, value in weights.items() if name != "embed.cond.weight"}
    own = into.state_dict()
    new = [name for name in own if name not in weights]
    fits = weights.keys() <= own.keys() and all(own[name].shape == value.shape for name, value in weights.items())
    if not fits or any(whole or not (".cross." in name or name == "embed.cond.weight") for name in new):
        raise ValueError("the network to start with has another form than the one to be trained: give it its options")
    into.load_state_dict({**own, **weights})


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware, so that bf16 is a gain."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch we accept
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


class _Meter:
    """What was measured since the last record."""

    def __init__(self, config: TrainConfig, state: TrainState, denoiser: Denoiser, accelerator: Accelerator):
        self.config, self.state, self.denoiser, self.accelerator = config, state, denoiser, accelerator
        self.losses, self.step, self.seconds = [], state.step, state.seconds

    def mean_loss(self) -> float:
        """Over all processes; raises a FloatingPointError if it is not finite."""
        loss = self.accelerator.reduce(torch.stack(self.losses).mean(), "mean").item()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} after {self.state.step} steps: lower learning_rate or set mixed_precision to 'no'"
            )
        return loss

    def record(self, loss: float, learning_rate: float, grad_norm: float, stopped: bool) -> StepRecord:
        """The next record, after which the measuring begins anew."""
        step, seconds, batch_size = self.state.step, self.state.seconds, self.config.batch_size
        images, since = step * batch_size, (step - self.step) * batch_size
        rate = since / max(1e-9, seconds - self.seconds)
        self.losses, self.step, self.seconds = [], step, seconds
        return StepRecord(step, images, loss, learning_rate, grad_norm, seconds, rate, self.denoiser, stopped)


def _check_images(images: Tensor) -> None:
    """Raise a ValueError for pictures that cannot be trained on."""
    # Pictures as floats, 0 … 255, are a slip that would train without a word.
    latents = images.dtype == torch.float32 and images.dim() == 4 and images.numel() > 1 and images.std() < 10
    if images.dtype != torch.uint8 and not latents or images.dim() != 4 or len(images) == 0:
        raise ValueError(
            "images must be a uint8 tensor (N, 3, H, W), or latents, float32 (N, C, H, W), with N ≥ 1, "
            f"not {images.dtype} {tuple(images.shape)}"
        )


def _new_state(config: TrainConfig, device: torch.device, start: nn.Module | None) -> TrainState:
    """An untrained network, or one that begins with another's weights; its average and optimizer."""
    if config.network is None or config.sigma_data is None:
        raise ValueError("say what to train: network and sigma_data are None")
    torch.manual_seed(fold(config.seed))  # the same initial weights on every process
    net = networks.build(**config.network).to(device)
    if start is not None:
        begin_with(net, start)
    ema = AveragedModel(deepcopy(net), multi_avg_fn=ema_update(config.ema_decay)).eval()
    return TrainState(net, ema, make_optimizer(config.optimizer, net, config.learning_rate, config.weight_decay))


def _accelerator(config: TrainConfig) -> Accelerator:
    # accelerate remembers the first precision it is given for the whole process, and a notebook
    # may well train twice with different ones.
    AcceleratorState._reset_state()
    device = Accelerator().device
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if bf16_is_native(device) else "no"
    use_compile = config.compile == "yes" or (config.compile == "auto" and device.type == "cuda")
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=precision, dynamo_backend="inductor" if use_compile else "no")
    if config.batch_size % accelerator.num_processes:
        raise ValueError(f"batch_size {config.batch_size} is no multiple of the {accelerator.num_processes} processes")
    return accelerator


def _agree(seconds: float, stop: bool, accelerator: Accelerator) -> tuple[float, bool]:
    """Process 0 decides, so that all processes keep one clock and stop at the same step."""
    if accelerator.num_processes == 1:
        return seconds, stop
    decision = torch.tensor([seconds, float(stop)], dtype=torch.float64, device=accelerator.device)
    seconds, stop = broadcast(decision, from_process=0).tolist()
    return seconds, bool(stop)
