"""One training loop, used by the notebooks and by `python -m diffusion_utils.train` alike.

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
from diffusion_utils.batches import check_cond, make_batch, make_cond, make_low_resolution
from diffusion_utils.config import TrainConfig
from diffusion_utils.consistency import STAGES, consistency_loss
from diffusion_utils.memory import keep_freed_memory
from diffusion_utils.networks.autoencoder import autoencoder_loss
from diffusion_utils.networks.super_resolution import SuperResolution
from diffusion_utils.networks.text import TextToImage
from diffusion_utils.optimizers import make_optimizer
from diffusion_utils.prediction import Denoiser, min_snr_weight, network_input, target
from diffusion_utils.runs import Log, load_checkpoint, read_log, restore, save_checkpoint, stop_on_signal
from diffusion_utils.schedule import Schedule

__all__ = [
    "StepRecord",
    "TrainConfig",
    "diffusion_loss",
    "ema_update",
    "load_checkpoint",
    "make_batch",
    "make_cond",
    "read_log",
    "stop_on_signal",
    "train",
]


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


def diffusion_loss(
    net: nn.Module,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    schedule: Schedule,
    prediction_type: str,
    min_snr_gamma: float | None = None,
    sigma_data: float = 0.5,
    cond: Tensor | None = None,
    snr_floor: float = 0.0,
) -> Tensor:
    """Mean squared error between the network's answer for x_t and the target (DDPM eq. 14).

    Args:
        net: called as net(x_t, t), or net(x_t, t, cond) where cond is given; for "edm" with x_t scaled
            to variance 1.
        x0: pictures (N, C, H, W) in [-1, 1];  noise: standard normal, same shape.
        t: int64 (N,) in [0, T-1].
        min_snr_gamma: weigh each picture by `min_snr_weight`; None: weight 1.
        sigma_data: for "edm"; see `prediction`.
        cond: what describes each picture, (N, cond_dim).
        snr_floor: the floor of `min_snr_weight`.
    """
    alpha, sigma = schedule.alpha_sigma(t, like=x0)
    x_t = alpha * x0 + sigma * noise
    shown = network_input(prediction_type, x_t, alpha, sigma, sigma_data)
    output = (net(shown, t) if cond is None else net(shown, t, cond)).float()
    wanted = target(prediction_type, x0, noise, alpha, sigma, sigma_data)
    error = (output - wanted).square().mean(dim=(1, 2, 3))
    if min_snr_gamma is not None:
        snr = schedule.snr(t).to(error)
        error = error * min_snr_weight(prediction_type, snr, min_snr_gamma, sigma_data, snr_floor)
    return error.mean()


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
        cond: one row per picture that describes it, (N, *net.cond_shape), for a network that takes such
            rows; a row of zeros describes nothing.  (N, K, *net.cond_shape) gives each picture K
            descriptions to choose from.  Networks for super-resolution make their own.
        start: a trained network, to begin with its weights instead of random ones: of the same form, or
            the picture network of a `TextToImage`, which then only has to learn the text.

    Under `accelerate launch` every process runs this and takes its share of each batch.

    Raises:
        ValueError: pictures or configuration unfit, or a resumed run that learns something else.
        FileExistsError: `run_dir` already holds a run and `resume` is False.
    """
    # Pictures as floats, 0 … 255, are a slip that would train without a word.
    latents = images.dtype == torch.float32 and images.dim() == 4 and images.numel() > 1 and images.std() < 10
    if images.dtype != torch.uint8 and not latents or images.dim() != 4 or len(images) == 0:
        raise ValueError(
            "images must be a uint8 tensor (N, 3, H, W), or latents, float32 (N, C, H, W), with N ≥ 1, "
            f"not {images.dtype} {tuple(images.shape)}"
        )
    checkpoint = run_dir and Path(run_dir) / "checkpoint.pt"
    if config.objective == "consistency" and start is None and not (resume and checkpoint and checkpoint.exists()):
        raise ValueError("objective 'consistency' tunes a trained network: give start (--start WEIGHTS)")
    accelerator = _accelerator(config)
    processes, device = accelerator.num_processes, accelerator.device
    if device.type == "cpu":
        keep_freed_memory()
    if config.batch_size % processes:
        raise ValueError(f"batch_size {config.batch_size} cannot be shared equally by {processes} processes")

    torch.manual_seed(config.seed)  # the same initial weights on every process
    net = networks.build(**config.network).to(device)
    check_cond(net, cond, len(images))
    if start is not None:
        begin_with(net, start)
    ema = AveragedModel(deepcopy(net), multi_avg_fn=ema_update(config.ema_decay)).eval()
    optimizer = make_optimizer(config.optimizer, net, config.learning_rate, config.weight_decay)
    step, seconds = 0, 0.0
    run_dir = run_dir and Path(run_dir)
    if checkpoint and checkpoint.exists():
        if not resume:
            raise FileExistsError(f"{run_dir} already holds a run: resume it (--resume) or choose another folder")
        step, seconds = restore(checkpoint, config, net, ema, optimizer, device)
    log = Log(run_dir / "log.jsonl", step) if run_dir and accelerator.is_main_process else None
    raw_net = net
    net, optimizer = accelerator.prepare(net, optimizer)
    schedule = config.make_schedule()
    if isinstance(raw_net, SuperResolution) and raw_net.max_noise > schedule.num_train_timesteps:
        raise ValueError(
            f"max_noise {raw_net.max_noise} lies beyond the {schedule.num_train_timesteps} timesteps: lower it"
        )
    denoiser = Denoiser(ema.module, schedule, config.prediction_type, config.sigma_data)
    images = images.to(device)
    if cond is not None:
        cond = cond.to(device, torch.int64 if isinstance(raw_net, TextToImage) else torch.float32)

    def save():
        if checkpoint and accelerator.is_main_process:
            save_checkpoint(checkpoint, config, raw_net, ema, optimizer, step, seconds)

    started = time.perf_counter() - seconds
    reported, losses = (step, seconds), []
    progress, stop = config.progress(step, seconds), False
    if progress >= 1:  # a finished run, resumed: hand out what it learnt, for a caller that died then
        loss = next((r["loss"] for r in reversed(read_log(run_dir / "log.jsonl"))), math.nan)
        yield StepRecord(step, step * config.batch_size, loss, 0.0, 0.0, seconds, 0.0, denoiser)
    with stop_on_signal() as stop_asked:
        while progress < 1 and not stop:
            share = (accelerator.process_index, processes)
            x0, noise, t = make_batch(images, step, config, share)
            if isinstance(raw_net, SuperResolution):
                described = make_low_resolution(x0, raw_net, schedule, step, config, share)
            else:
                described = None if cond is None else make_cond(cond, step, config, share)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step, progress)
            if config.objective == "consistency":
                loss = consistency_loss(
                    net,
                    x0,
                    noise,
                    t,
                    schedule,
                    config.prediction_type,
                    int(progress * STAGES),
                    config.sigma_data,
                    described,
                )
            elif config.objective == "autoencoder":
                shape = (len(x0), *raw_net.latent_shape(*x0.shape[2:]))
                latent_noise = noise.flatten(1)[:, : math.prod(shape[1:])].reshape(shape)
                loss = autoencoder_loss(net, x0, latent_noise, config.kl_weight)
            else:
                loss = diffusion_loss(
                    net,
                    x0,
                    noise,
                    t,
                    schedule,
                    config.prediction_type,
                    config.min_snr_gamma,
                    config.sigma_data,
                    described,
                    config.snr_floor,
                )
            accelerator.backward(loss)
            grad_norm = accelerator.clip_grad_norm_(net.parameters(), config.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            ema.update_parameters(raw_net)
            losses.append(loss.detach())
            step += 1
            seconds, stop = _agree(time.perf_counter() - started, stop_asked(), accelerator)
            progress = config.progress(step, seconds)
            finished = progress >= 1 or stop
            log_due = finished or step % config.log_every == 0
            save_due = finished or step % config.checkpoint_every == 0
            if log_due or save_due:
                mean_loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                if not math.isfinite(mean_loss):  # before saving: a good checkpoint stays good
                    raise FloatingPointError(
                        f"the loss is {mean_loss} after {step} steps: lower learning_rate "
                        "or set mixed_precision to 'no'"
                    )
            if log_due:
                record = StepRecord(
                    step,
                    step * config.batch_size,
                    mean_loss,
                    config.learning_rate_at(step - 1, progress),
                    float(grad_norm),
                    seconds,
                    (step - reported[0]) * config.batch_size / max(1e-9, seconds - reported[1]),
                    denoiser,
                    stopped=progress < 1 and stop,
                )
                reported, losses = (step, seconds), []
                if log:
                    log.write(record.to_json())
            if save_due:  # after the log: killed in between, a resumed run writes the line again
                save()
            if log_due:
                handed_out = time.perf_counter()
                yield record
                started += time.perf_counter() - handed_out  # what the caller does is not training
    accelerator.free_memory()


def begin_with(net: nn.Module, start: nn.Module) -> None:
    """Put a trained network's weights into `net`, or into its picture network where `net` is a
    `TextToImage` and the start is none: then what has to do with the text stays new, and what the start
    knew of other descriptions is left behind.

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
        raise ValueError(
            "the network to start with is of another form than the one to be trained: give it the same options"
        )
    into.load_state_dict({**own, **weights})


def ema_update(decay: float) -> Callable:
    """Exponential moving average of weights, for `AveragedModel(multi_avg_fn=…)`.

    ema ← d·ema + (1-d)·weights with d = min(decay, (1+n)/(10+n)) after n updates.  The small d at
    first forgets the random initial weights at once, which a plain average drags along for
    thousands of steps.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware, so that bf16 is a gain."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch we accept
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


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
    return Accelerator(mixed_precision=precision, dynamo_backend="inductor" if use_compile else "no")


def _agree(seconds: float, stop: bool, accelerator: Accelerator) -> tuple[float, bool]:
    """Process 0 decides, so that all processes keep one clock and stop at the same step."""
    if accelerator.num_processes == 1:
        return seconds, stop
    decision = torch.tensor([seconds, float(stop)], dtype=torch.float64, device=accelerator.device)
    seconds, stop = broadcast(decision, from_process=0).tolist()
    return seconds, bool(stop)
