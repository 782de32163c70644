"""Ideal denoisers beside networks, where it takes longer than notebook 08 has time for.

STANFORD_CARS_ROOT=… python benchmarks/ideal.py                       # a minute
python benchmarks/ideal.py --weights toy-cars-resnet
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from common import RESULTS, Results, command, name_of
from torch import Tensor

from diffusion_utils import pretrained
from diffusion_utils.data import sets, to_float
from diffusion_utils.ideal import Ideal, likeness
from diffusion_utils.prediction import Denoiser
from diffusion_utils.sampling import Noise

TIMESTEPS = (99, 299, 499, 699, 899)
PATCHES = (3, 5, 9, 17, 33)


@dataclass
class Likeness:
    """Which ideal denoiser is a network most like, at which timestep?

    The network and ideal denoisers of several patch sizes answer to the same held-out pictures with the same noise;
    the ideal ones know the first of the network's training pictures.  Their x̂₀ are correlated with the network's, and
    their errors are measured.  Unconditional, not guided.  Writes benchmarks/results/likeness-NAME.json.
    """

    weights: str = "stanford-cars-1m"  # A name, or a path.
    pictures: int = 2048  # How many training pictures the ideal denoisers know.
    count: int = 4  # Held-out pictures.
    results: Path = RESULTS  # The folder of the results.
    tiny: bool = False  # Few pictures and patches, to see that it runs.

    @torch.no_grad()
    def __call__(self) -> None:
        denoiser, card = pretrained.load(self.weights), pretrained.card(self.weights)
        data = "toy_cars" if card["data"].startswith("toy cars") else "stanford_cars"
        found = sets.load(data, card["size"])
        known = to_float(found.images[: 16 if self.tiny else self.pictures])
        x0, patches = to_float(found.part("validation")[: self.count]), (3, 9) if self.tiny else PATCHES
        results = Results(self.results / f"likeness-{name_of(self.weights)}.json")
        noise = Noise(range(len(x0)), x0.shape[1:])()
        for t in TIMESTEPS:
            settings = {"t": t, "pictures": len(known), "count": len(x0), "patches": list(patches)}
            weights = {"images_seen": card["images_seen"]}
            if not results.find(settings | weights):  # a row of the weights before makes room
                row = compare(denoiser, known, x0, noise, t, patches)
                results.add({**settings, **weights, **row, **pretrained.machine()}, instead_of=results.find(settings))
            print(results.find(settings), flush=True)


def compare(denoiser: Denoiser, known: Tensor, x0: Tensor, noise: Tensor, t: int, patches: tuple[int, ...]) -> dict:
    """By denoiser the correlation of its x̂₀ with the network's, and its error as a share of the pictures' variance."""
    schedule, mean, at = denoiser.schedule, known.mean(0), torch.full((len(x0),), t)
    x_t = schedule.add_noise(x0, noise, at)
    guesses = {"network": denoiser(x_t, at)}
    guesses |= {f"patch {patch}": Ideal(known, schedule, patch)(x_t, at) for patch in patches}
    guesses["whole"] = Ideal(known, schedule)(x_t, at)
    variance = (x0 - mean).square().mean()
    errors = {name: ((guess - x0).square().mean() / variance).item() for name, guess in guesses.items()}
    alike = {name: likeness(guess, guesses["network"], mean) for name, guess in guesses.items()}
    return {
        kind: {name: round(value, 4) for name, value in values.items()}
        for kind, values in (("likeness", alike), ("error", errors))
    }


main = command(Likeness, __doc__)

if __name__ == "__main__":
    main()
