"""The small network beside U-Nets of 1 to 114 million parameters, for equal minutes on one machine, or equally many
pictures.

    pip install denoising-diffusion-pytorch smalldiffusion diffusers
    OMP_NUM_THREADS=2 python benchmarks/peers.py --size 32 --minutes 8 --count 256      # a CPU
    python benchmarks/peers.py --size 64 --minutes 8 --count 2048                        # a GPU
    python benchmarks/peers.py ours "plain U-Net, 1 M" --size 32 --images 400000 --count 256 --out longer.json
    python benchmarks/peers.py ours --size 32 --minutes 8 --count 256 --shipped stanford-cars-1m

Every peer keeps what it is known for, as published: network, noise schedule, what it predicts, loss,
optimizer, learning rate and batch.  Everything else is the same for all: the pictures, the minutes, the
precision, mirroring, the sampler, no warm-up (which would take most of the minutes of a large network
on a CPU; ours takes 100 steps), and four things that help the peers, most of which come without
them: clipped gradients, a learning rate that falls to 0 at the end, an average of the weights, which is
what draws, and BatchNorm's statistics taken anew for that average.  Each runs in a process of its own,
so that its memory can be told from that of the others.  Stanford Cars is looked for where
STANFORD_CARS_ROOT points.  --shipped sets weights of the package beside them, which had their own time
to learn.

Writes benchmarks/results/peers-SIZE-DEVICE.json, a peer at a time; what it holds already is not
measured again, and a training that was interrupted goes on from its last checkpoint (every five
minutes, in runs/peers).
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from common import RESULTS, Results, chosen, command
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from diffusion_utils import networks, pipeline, pretrained
from diffusion_utils.commands.sample import DEVICE
from diffusion_utils.data import sets, to_uint8
from diffusion_utils.evaluation import Reference
from diffusion_utils.files import keep_freed_memory, write_atomically
from diffusion_utils.networks.presets import PRESETS
from diffusion_utils.plotting import save_grid
from diffusion_utils.prediction import Denoiser, target
from diffusion_utils.sampling import sample
from diffusion_utils.schedule import Schedule, make_schedule
from diffusion_utils.training import TrainConfig
from diffusion_utils.training.arithmetic import bf16_is_native
from diffusion_utils.training.batches import make_batch
from diffusion_utils.training.optimizers import MovingAverage, Muon, ema_update

SAMPLER, STEPS = "dpm_solver_pp", 20
CHECKPOINT_EVERY = 300  # seconds of training


def l1(output: Tensor, wanted: Tensor, alpha: Tensor) -> Tensor:
    return F.l1_loss(output, wanted)


def l2(output: Tensor, wanted: Tensor, alpha: Tensor) -> Tensor:
    return F.mse_loss(output, wanted)


def l2_by_signal(output: Tensor, wanted: Tensor, alpha: Tensor) -> Tensor:
    """Weight SNR/(SNR + 1) = α²: what GaussianDiffusion of denoising-diffusion-pytorch gives an error in v."""
    return (alpha**2 * (output - wanted).square()).mean()


@dataclass(frozen=True)
class Peer:
    """One method as published.

    Attributes:
        about: what it is and where its settings come from.
        build: size of the pictures in pixels to a network net(x_t, t).
        schedule: its noise schedule.
        optimizer: of a network, with the peak of the learning rate.
        prediction_type: as in `prediction`.
        loss: of (output, target, alpha).
        batch_size, warmup_steps: of its training.
    """

    about: str
    build: Callable[[int], nn.Module]
    schedule: Callable[[], Schedule]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    prediction_type: str = "epsilon"
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] = l2
    batch_size: int = 64
    warmup_steps: int = 0


class PlainUNet(nn.Module):
    """The U-Net of the Stanford Cars tutorial most often copied (DeepFindr, "Diffusion models from
    scratch in PyTorch"), rebuilt from its description.

    Widths 64, 128, 256, 512, 1024; in each block a convolution, the timestep added to every place, a
    second convolution, then a 4×4 convolution of stride 2 that halves (or, transposed, doubles);
    ReLU and BatchNorm throughout; the way up gets the way down's features stacked behind its own.
    """

    class Block(nn.Module):
        def __init__(self, before: int, after: int, up: bool, embedding_dim: int = 32):
            super().__init__()
            self.time = nn.Linear(embedding_dim, after)
            self.conv1 = nn.Conv2d(2 * before if up else before, after, 3, padding=1)
            self.conv2 = nn.Conv2d(after, after, 3, padding=1)
            self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
            kind = nn.ConvTranspose2d if up else nn.Conv2d
            self.resample = kind(after, after, 4, stride=2, padding=1)

        def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
            h = self.norm1(F.relu(self.conv1(h))) + F.relu(self.time(embedding))[:, :, None, None]
            return self.resample(self.norm2(F.relu(self.conv2(h))))

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512, 1024), embedding_dim: int = 32):
        super().__init__()
        pairs = list(pairwise(widths))
        self.frequencies = embedding_dim
        self.embed = nn.Sequential(nn.Linear(embedding_dim, embedding_dim), nn.ReLU())
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(self.Block(a, b, up=False) for a, b in pairs)
        self.up = nn.ModuleList(self.Block(b, a, up=True) for a, b in reversed(pairs))
        self.head = nn.Conv2d(widths[0], 3, 1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        embedding = self.embed(networks.blocks.timestep_embedding(t, self.frequencies))
        h, kept = self.stem(x_t), []
        for block in self.down:
            h = block(h, embedding)
            kept.append(h)
        for block in self.up:
            h = block(torch.cat([h, kept.pop()], dim=1), embedding)
        return self.head(h)


class Wrapped(nn.Module):
    """A peer's network, called as every network here is: net(x_t, t)."""

    def __init__(self, inner: nn.Module, call: Callable[[nn.Module, Tensor, Tensor], Tensor]):
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.call(self.inner, x_t, t)


def plain_schedule() -> Schedule:
    """β from 0.0001 to 0.02, made for 1000 steps and used for 300: a fifth of the signal is left at the end."""
    return Schedule((1 - torch.linspace(1e-4, 0.02, 300, dtype=torch.float64)).cumprod(0), "linear, cut short")


def ours(size: int) -> nn.Module:
    return networks.build(**PRESETS["stanford_cars"]["network"])


def ddpm_pytorch_unet(size: int) -> nn.Module:
    from denoising_diffusion_pytorch import Unet

    return Unet(dim=64)


def ddpm_pytorch_schedule() -> Schedule:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    diffusion = GaussianDiffusion(Unet(dim=8, dim_mults=(1, 2)), image_size=32, timesteps=1000)
    return Schedule(diffusion.alphas_cumprod.double(), "sigmoid")


def diffusers_unet(size: int) -> nn.Module:
    from diffusers import UNet2DModel

    down = ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"]
    up = ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4
    blocks = dict(block_out_channels=(128, 128, 256, 256, 512, 512), down_block_types=down, up_block_types=up)
    net = UNet2DModel(size, in_channels=3, out_channels=3, layers_per_block=2, **blocks)
    return Wrapped(net, lambda net, x_t, t: net(x_t, t).sample)


def smalldiffusion_schedule() -> Schedule:
    from smalldiffusion import ScheduleSigmoid

    sigmas = ScheduleSigmoid(N=1000).sigmas.double()
    return Schedule(1 / (1 + sigmas**2), "sigmoid of smalldiffusion")


def smalldiffusion_unet(size: int) -> nn.Module:
    from smalldiffusion import Scaled, Unet

    schedule = smalldiffusion_schedule()

    def call(net: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
        # It takes x₀ + s·ε and s = σ/α, where the networks here take x_t = α·x₀ + σ·ε and t.
        alpha, sigma = schedule.alpha_sigma(t, like=x_t)
        return net(x_t / alpha, sigma / alpha)

    return Wrapped(Scaled(Unet)(size, 3, 3, ch=128, ch_mult=(1, 2, 2, 2), attn_resolutions=(16,)), call)


PEERS = {
    "ours": Peer(
        "the preset of `python -m diffusion_utils train --data stanford_cars --optimizer muon "
        "--learning-rate 2e-3`, without body types",
        ours,
        lambda: make_schedule("cosine"),
        lambda net: Muon(net, 2e-3, 0.01),
        "sample",
        warmup_steps=100,
    ),
    "plain U-Net": Peer(
        "the U-Net of the Stanford Cars tutorial (DeepFindr): BatchNorm, T = 300, linear β, L1 loss on ε",
        lambda size: PlainUNet(),
        plain_schedule,
        lambda net: Adam(net.parameters(), 1e-3),
        loss=l1,
        batch_size=128,
    ),
    "plain U-Net, 1 M": Peer(
        "the same with an eighth of its widths (8, 16, 32, 64, 128), and so as many parameters as ours",
        lambda size: PlainUNet((8, 16, 32, 64, 128)),
        plain_schedule,
        lambda net: Adam(net.parameters(), 1e-3),
        loss=l1,
        batch_size=128,
    ),
    "denoising-diffusion-pytorch": Peer(
        "Unet(dim=64) with GaussianDiffusion's defaults (v, sigmoid schedule), trained as in the README",
        ddpm_pytorch_unet,
        ddpm_pytorch_schedule,
        lambda net: Adam(net.parameters(), 8e-5, (0.9, 0.99)),
        "v_prediction",
        l2_by_signal,
    ),
    "diffusers": Peer(
        "UNet2DModel as in diffusers' example of unconditional training (train_unconditional.py): ε, linear β",
        diffusers_unet,
        lambda: make_schedule("linear"),
        lambda net: AdamW(net.parameters(), 1e-4, (0.95, 0.999), weight_decay=1e-6),
        batch_size=16,
    ),
    "smalldiffusion": Peer(
        "Scaled(Unet) as in smalldiffusion's CIFAR-10 example (cifar_unet.py): ε, sigmoid schedule; its batch "
        "of 256 is 64 here, which gives it four times as many steps",
        smalldiffusion_unet,
        smalldiffusion_schedule,
        lambda net: AdamW(net.parameters(), 2e-4),
    ),
}


def fit(
    peer: Peer, size: int, pictures: Tensor, device: torch.device, checkpoint: Path | None = None, **budget: float
) -> tuple[Denoiser, dict]:
    """Train within a budget (minutes=8, images=100_000, or steps=100); returns the averaged network as a denoiser, and
    what it took.

    Args:
        checkpoint: a file that is written every `CHECKPOINT_EVERY` seconds; where it is there, the training goes on
            from it.
    """
    torch.manual_seed(0)
    net = peer.build(size).to(device)
    ema = MovingAverage(net, multi_avg_fn=ema_update(0.999)).eval()
    schedule = peer.schedule()
    optimizer = peer.optimizer(net)
    config = TrainConfig(
        **budget,
        batch_size=peer.batch_size,
        learning_rate=optimizer.param_groups[0]["lr"],
        warmup_steps=peer.warmup_steps,
        num_train_timesteps=schedule.num_train_timesteps,
    )
    parts = {"net": net, "ema": ema, "optimizer": optimizer}
    pictures, step, seconds, memory = pictures.to(device), 0, 0.0, 0
    if checkpoint and checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        step, seconds, memory = saved["step"], saved["seconds"], saved["peak_memory_mib"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    progress = config.progress(step, seconds)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started, last_saved = time.perf_counter() - seconds, seconds
    while progress < 1:
        x0, noise, t = make_batch(pictures, step, config)
        alpha, sigma = schedule.alpha_sigma(t, like=x0)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_native(device)):
            output = net(alpha * x0 + sigma * noise, t)
        loss = peer.loss(output.float(), target(peer.prediction_type, x0, noise, alpha, sigma), alpha)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), config.clip_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step, progress)
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(net)
        loss.item()  # wait for the device, so that the clock is right
        step, seconds = step + 1, time.perf_counter() - started
        progress = config.progress(step, seconds)
        if checkpoint and seconds - last_saved >= CHECKPOINT_EVERY:
            memory, last_saved = max(memory, peak_memory_mib(device)), seconds
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= dict(step=step, seconds=seconds, peak_memory_mib=memory)
            write_atomically(checkpoint, lambda path, state=state: torch.save(state, path))
    settle_batch_norm(ema.module, (make_batch(pictures, step + i, config) for i in range(20)), schedule)
    seen = step * peer.batch_size
    took = dict(steps=step, images_seen=seen, seconds=round(seconds, 1), images_per_second=round(seen / seconds, 1))
    took["peak_memory_mib"] = max(memory, peak_memory_mib(device))
    return Denoiser(ema.module, schedule, peer.prediction_type), took


@torch.no_grad()
def settle_batch_norm(net: nn.Module, batches: Iterable, schedule: Schedule) -> None:
    """Take BatchNorm's means and variances anew: those that came along belong to other weights."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over all batches
    net.train()
    for x0, noise, t in batches:
        net(schedule.add_noise(x0, noise, t), t)
    net.eval()


def peak_memory_mib(device: torch.device) -> int:
    """The most memory in use so far: the device's, or of this process on a CPU (Linux counts in KiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure(name: str, args: "Peers") -> dict:
    """Train one peer, draw from it, and compare what it drew with held-out cars."""
    peer, device = PEERS[name], torch.device(args.device)
    keep_freed_memory()
    pictures = sets.load("stanford_cars", args.size)
    denoiser, took = fit(peer, args.size, pictures.images, device, args.checkpoint(name), **args.budget)
    shape = (3, args.size, args.size)

    def draw(seeds: range) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_native(device)):
            return to_uint8(sample(denoiser, seeds, shape, SAMPLER, STEPS, device)).cpu()

    draw(range(2))
    seconds_for_16 = []
    for _ in range(3):
        started = time.perf_counter()
        draw(range(16))
        seconds_for_16.append(time.perf_counter() - started)
    drawn = torch.cat([draw(range(i, min(i + 64, args.count))) for i in range(0, args.count, 64)])
    net = denoiser.net
    row = dict(peer=name, about=peer.about)
    row |= dict(parameters=networks.count_parameters(net), macs=networks.count_macs(net, shape))
    row |= dict(prediction_type=peer.prediction_type, schedule=denoiser.schedule.name, batch_size=peer.batch_size)
    row |= args.budget | dict(count=args.count, size=args.size, data=pictures.description) | took
    row |= dict(seconds_to_draw_16=round(median(seconds_for_16), 3), sampler=SAMPLER, sampler_steps=STEPS)
    row |= pretrained.machine() | Reference(pictures.images, pictures.held_out).evaluate(drawn)
    return row | {"first_16": drawn[:16]}


def measure_shipped(name: str, args: "Peers") -> dict:
    """Compare weights of the package with the same held-out cars: drawn at their own size, as their
    card advises, and shrunk to the size of the peers' pictures."""
    pictures, pipe = sets.load("stanford_cars", args.size), pipeline.load(name, args.device)
    drawn = pipe(range(args.count)).float()
    drawn = F.interpolate(drawn, (args.size, args.size), mode="bicubic", antialias=True).round().clamp(0, 255)
    row = dict(peer=name, about="weights of the package, after a training of their own", minutes=None, images=None)
    row |= dict(count=args.count, size=args.size, drawn_at=pipe.size, data=pictures.description)
    row |= {key: pipe.card[key] for key in ("parameters", "macs", "images_seen", "seconds")}
    row |= dict(drawing=asdict(pipe.drawing), trained_on=pipe.card["machine"]) | pretrained.machine()
    return row | Reference(pictures.images, pictures.held_out).evaluate(drawn.to(torch.uint8))


@dataclass
class Peers:
    peers: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(help=f"Default: all of {', '.join(PEERS)}.")
    ] = ()
    size: int = 64  # Of the pictures, in pixels.
    minutes: float | None = None  # Of training, for each; default: 8.
    count: int = 748  # How many pictures to draw for KID.
    device: str = DEVICE  # Where to train and draw, such as cpu or cuda.
    out: Path | None = None  # The JSON file; default: benchmarks/results/peers-SIZE-DEVICE.json.
    shipped: str | None = None  # Set these weights of the package beside the peers.
    one: bool = False  # Measure one peer in this very process; the command starts one for each.
    images: int | None = None  # In place of --minutes: how many pictures each is trained on.
    runs: Path = Path("runs/peers")  # The folder of what is needed to go on with a training.

    def __post_init__(self) -> None:
        if self.minutes is not None and self.images is not None:
            raise ValueError("--minutes and --images: give one of them")
        if self.minutes is None and self.images is None:
            self.minutes = 8

    @property
    def budget(self) -> dict[str, float | None]:
        return {"minutes": self.minutes, "images": self.images}

    @property
    def amount(self) -> str:
        return f"{self.minutes:g} minutes" if self.images is None else f"{self.images:,} pictures"

    def checkpoint(self, name: str) -> Path:
        device = torch.device(self.device).type
        return self.runs / f"{name}, {self.size} pixels, {self.amount}, {device}.pt"

    def __call__(self) -> None:
        names = chosen("peer", self.peers, PEERS)
        card = pretrained.card(self.shipped) if self.shipped else None
        if card and (not card["data"].startswith("Stanford Cars") or card["size"] < self.size):
            cars = f"{self.size}×{self.size} cars"
            raise ValueError(f"{self.shipped} ({card['data']}) cannot be set beside peers of {cars}")
        out = self.out or RESULTS / f"peers-{self.size}-{self.device.split(':')[0]}.json"
        results = Results(out)
        if self.one:
            row = measure(names[0], self)
            save_grid(row.pop("first_16"), out.with_name(f"{out.stem}-{names[0].replace(' ', '-')}.png"), 8)
            results.add(row)
            self.checkpoint(names[0]).unlink(missing_ok=True)  # what it was for is written
            return
        settings = {**self.budget, "count": self.count, "size": self.size}
        for name in names:
            PEERS[name].schedule()  # says now, not after the others' minutes, if its library is missing
        for name in names:
            if results.find({"peer": name, **settings}):
                continue
            print(f"{name}: {self.amount} of training", flush=True)
            given = {**settings, "out": out, "device": self.device, "runs": self.runs}
            options = [f"--{key}={value}" for key, value in given.items() if value is not None]
            if failed := subprocess.run([sys.executable, __file__, name, "--one", *options]).returncode:
                sys.exit(failed)  # its own process has said what went wrong
        results = Results(out)
        rows = [row for row in results.rows if {key: row.get(key) for key in settings} == settings]
        if self.shipped:  # measured anew each time: the weights may be others by now
            rows.append(measure_shipped(self.shipped, self))
            before = results.find({key: rows[-1][key] for key in ("peer", "count", "size")})
            results.add(rows[-1], instead_of=before)
        for row in rows:
            print(f"{row['peer']}: {row['images_seen']:,} images, KID × 1000 {1000 * row['generated']['kid']:.0f}")


main = command(Peers, __doc__)

if __name__ == "__main__":
    main()
