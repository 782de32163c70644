"""Reflow on pictures: does a network that is trained again on its own walks draw in fewer steps?

OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/flow.py            # a few minutes on one core
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from common import RESULTS, Results, command, name_of
from torch import Tensor
from tqdm import tqdm

from diffusion_utils import pretrained
from diffusion_utils.data import sets
from diffusion_utils.evaluation import features, metrics
from diffusion_utils.plotting import strip
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import Noise, ddim, generator, sample, stream

STEPS = (1, 2, 4, 20)
SHOWN = 5  # cars of the picture


@torch.no_grad()
def walks(denoiser: Denoiser, seeds: range, shape: tuple[int, ...], steps: int) -> tuple[Tensor, Tensor]:
    """Noise, one per seed, and the pictures that the denoiser's own DDIM makes of it: both (N, C, H, W)."""
    pairs = []
    for i in tqdm(range(seeds.start, seeds.stop, 64), desc="walking", mininterval=10):
        noise = Noise(range(i, min(i + 64, seeds.stop)), shape)()
        *_, end = ddim(denoiser, denoiser.schedule, noise, steps=steps)
        pairs.append((noise, end.x_t))
    noise, pictures = map(torch.cat, zip(*pairs))
    return noise, pictures


def reflow(denoiser: Denoiser, noise: Tensor, pictures: Tensor, images: int, learning_rate: float, seed: int) -> None:
    """Train on with each picture's own noise: the usual loss, other pairs (Liu et al. 2022, 2209.03003, section 2).

    A pair is mirrored half of the time, both parts of it.
    """
    random, batch = generator(stream(seed, 1)), 64
    net = denoiser.net.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(net.parameters(), learning_rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, -(-images // batch))
    for _ in tqdm(range(-(-images // batch)), desc="training", mininterval=10):
        which = torch.randint(len(noise), (batch,), generator=random)
        mirrored = torch.rand(batch, 1, 1, 1, generator=random) < 0.5
        x0, epsilon = (torch.where(mirrored, part[which].flip(3), part[which]) for part in (pictures, noise))
        t = torch.randint(denoiser.schedule.num_train_timesteps, (batch,), generator=random)
        optimizer.zero_grad()
        denoiser.loss(x0, epsilon, t).backward()
        optimizer.step()
        decay.step()
    net.eval().requires_grad_(False)


@dataclass
class Reflow:
    """Reflow (Liu et al. 2022): walk noise to pictures, keep the pairs, train again on them, and count steps.

    The network is measured before and after with 1, 2, 4 and 20 steps of DDIM, which are Euler's along the straight
    path: KID against held-out pictures (and, as the floor, that of pictures it learnt from).  Seeds of the pairs and
    of the measured pictures differ.  Writes benchmarks/results/reflow-NAME.json and a picture of seeds 0 to 4.
    """

    weights: str = "toy-cars-resnet"  # Which are to be straightened, unconditional ones.
    data: str = "toy_cars"  # What they were trained on.
    pairs: int = 1024  # Walks to learn from.
    walk: int = 20  # Steps of each.
    images: int = 12_800  # How many noisy pictures the second training sees.
    learning_rate: float = 5e-4  # At its beginning; it falls to 0 in a straight line.
    count: int = 256  # Pictures to measure with.
    results: Path = RESULTS  # The folder of the results.
    picture: Path = Path("images/reflow.png")  # What is drawn before and after.
    runs: Path = Path("runs/reflow")  # The folder of the new weights.

    def __call__(self) -> None:
        name, card = name_of(self.weights), pretrained.card(self.weights)
        shape = (3, card["size"], card["size"])
        before, after = pretrained.load(self.weights), self.runs / f"{name}.safetensors"
        learnt = dict(pairs=self.pairs, walk=self.walk, images=self.images, learning_rate=self.learning_rate)
        if not after.exists() or pretrained.card(after).get("reflow") != learnt:
            straight = pretrained.load(self.weights)
            reflow(straight, *walks(before, range(10_000, 10_000 + self.pairs), shape, self.walk), *self._how())
            pretrained.save(after, straight, {**card, "reflow": learnt}, dtype=torch.float32)
        networks = {"before": before, "after": pretrained.load(after)}

        results, rows, real = Results(self.results / f"reflow-{name}.json"), [], sets.load(self.data, card["size"])
        held_out = features.cached(real.held_out, features.DEFAULT)
        floor = metrics.kid(held_out, features.features(real.images[: self.count]))[0]
        for state, denoiser in networks.items():
            for steps in STEPS:
                settings = {"network": state, "steps": steps, "count": self.count, **learnt}
                if not results.find(settings):
                    drawn = torch.cat([self._draw(denoiser, i, shape, steps) for i in range(0, self.count, 64)])
                    kid = metrics.kid(held_out, features.features(drawn))[0]
                    results.add({**settings, "kid": round(kid, 5), "floor": round(floor, 5), **pretrained.machine()})
                print(f"{state}, {steps} steps: KID × 1000 {1000 * results.find(settings)['kid']:.1f}", flush=True)
        for steps in STEPS[:3]:
            rows += [sample(denoiser, range(SHOWN), shape, "ddim", steps) for denoiser in networks.values()]
        labels = [f"{state}, {n} step{'s'[: n > 1]}" for n in STEPS[:3] for state in networks]
        figure = strip(rows, [f"seed {i}" for i in range(SHOWN)], labels, width=6.5)
        self.picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.picture, metadata={"Software": None})

    def _how(self) -> tuple[int, float, int]:
        return self.images, self.learning_rate, 0

    def _draw(self, denoiser: Denoiser, first: int, shape: tuple[int, ...], steps: int) -> Tensor:
        return sample(denoiser, range(first, min(first + 64, self.count)), shape, "ddim", steps)


main = command(Reflow, __doc__)

if __name__ == "__main__":
    main()
