"""The optimizers a run can choose from (AdamW, or Muon for the matrices with AdamW for the rest), and the moving
average of the weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.99)


def make_optimizer(name: str, net: nn.Module, learning_rate: float, weight_decay: float):
    """ "adamw" (Loshchilov & Hutter 2019, 1711.05101) or "muon" (see `Muon`) over a network's weights."""
    if name == "adamw":
        return _adamw(list(net.parameters()), learning_rate, weight_decay)
    return Muon(net, learning_rate, weight_decay)


class Muon:
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum made orthogonal.

    AdamW scales each number of an update by itself.  Muon takes the update of a weight *matrix* as
    one thing and makes its singular values (nearly) equal, so that rare directions move as far as
    common ones.  Convolutions count as matrices of (outputs × all inputs under the kernel).  As in
    the original, a denoiser's first and last layers, embeddings, norms and biases are left to AdamW.
    Steps are scaled to AdamW's size (Liu et al. 2025, 2502.16982), so learning rate and weight decay
    carry over.

    Behaves like a torch optimizer (step, zero_grad, param_groups, state_dict, load_state_dict).
    """

    def __init__(self, net: nn.Module, learning_rate: float, weight_decay: float):
        outer = ("stem", "head", "embed")

        def is_outer(name: str) -> bool:
            return any(part.startswith(outer) for part in name.split("."))

        self.weights = [p for name, p in net.named_parameters() if p.dim() > 1 and not is_outer(name)]
        chosen = {id(p) for p in self.weights}
        # torch's Muon takes matrices only: it gets views of the same memory.
        self.matrices = [nn.Parameter(p.detach().view(len(p), -1)) for p in self.weights]
        self.muon = torch.optim.Muon(
            self.matrices, learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = _adamw([p for p in net.parameters() if id(p) not in chosen], learning_rate, weight_decay)
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    def step(self) -> None:
        for matrix, weight in zip(self.matrices, self.weights):
            # Whoever moved the network since (as accelerate does) gave its weights other memory.
            matrix.data = weight.detach().view(len(weight), -1)
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        self.muon.step()
        self.adamw.step()

    def zero_grad(self) -> None:
        self.adamw.zero_grad()
        for weight in self.weights:
            weight.grad = None

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
        self.param_groups = self.muon.param_groups + self.adamw.param_groups


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


def _adamw(parameters: list, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(parameters, learning_rate, betas=BETAS, weight_decay=weight_decay, fused=fused)
