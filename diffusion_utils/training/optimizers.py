"""The optimizers a run can choose from (AdamW, or Muon for the matrices with AdamW for the rest), and the moving
average of the weights."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from diffusion_utils.training.arithmetic import bf16_is_native

BETAS = (0.9, 0.99)


def make_optimizer(name: str, net: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """ "adamw" (Loshchilov & Hutter 2019, 1711.05101) or "muon" (see `Muon`) over a network's weights."""
    if name == "adamw":
        return _adamw(list(net.parameters()), learning_rate, weight_decay)
    return Muon(net, learning_rate, weight_decay)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum made orthogonal.

    AdamW scales each number of an update by itself.  Muon takes the update of a weight *matrix* as
    one thing and makes its singular values (nearly) equal, so that rare directions move as far as
    common ones.  Convolutions count as matrices of (outputs × all inputs under the kernel).  As in
    the original, a denoiser's first and last layers, embeddings, norms and biases are left to AdamW.
    Steps are scaled to AdamW's size (Liu et al. 2025, 2502.16982), so learning rate and weight decay
    carry over.

    Its two groups of parameters are the matrices and the rest.
    """

    def __init__(self, net: nn.Module, learning_rate: float, weight_decay: float):
        outer = ("stem", "head", "embed")

        def is_outer(name: str) -> bool:
            return any(part.startswith(outer) for part in name.split("."))

        weights = [p for name, p in net.named_parameters() if p.dim() > 1 and not is_outer(name)]
        chosen = {id(p) for p in weights}
        self.adamw = _adamw([p for p in net.parameters() if id(p) not in chosen], learning_rate, weight_decay)
        defaults = {"lr": learning_rate, "weight_decay": weight_decay, "momentum": 0.95}
        super().__init__([{"params": weights}], defaults)
        self.param_groups += self.adamw.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update; `closure`, where there is one, computes loss and gradients first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices, rest = self.param_groups
        rate, momentum = matrices["lr"], matrices["momentum"]
        for weight in matrices["params"]:
            if weight.grad is None:
                continue
            gradient = weight.grad.flatten(1)
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(gradient)
            buffer = self.state[weight]["momentum_buffer"].lerp_(gradient, 1 - momentum)
            update = orthogonalized(gradient.lerp(buffer, momentum))  # Nesterov's: it looks one step ahead
            weight.mul_(1 - rate * matrices["weight_decay"])
            weight.add_(update.view_as(weight), alpha=-rate * 0.2 * math.sqrt(max(update.shape)))
        # Loading replaces groups and state, so AdamW is shown its own anew.
        self.adamw.param_groups, self.adamw.state = [rest], self.state
        self.adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """Also that of earlier versions, which kept the matrices' state and that of the rest apart."""
        if "muon" in state_dict:
            matrices, rest = state_dict["muon"], state_dict["adamw"]
            first, second = matrices["param_groups"][0], rest["param_groups"][0]
            count = len(first["params"])
            states = matrices["state"] | {count + i: state for i, state in rest["state"].items()}
            groups = [first, second | {"params": [count + i for i in second["params"]]}]
            state_dict = {"state": states, "param_groups": groups}
        super().load_state_dict(state_dict)


def orthogonalized(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix (m, n) with its singular values moved near 1 and its directions kept.

    Newton and Schulz's iteration X ← a·X + (b·A + c·A²)·X, A = X·Xᵀ, with Jordan et al.'s coefficients, which
    raise small values fastest and leave all between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16() if bf16_is_native(matrix.device) else matrix.float()  # in software bfloat16 is far slower
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class MovingAverage(AveragedModel):
    """torch's `AveragedModel` without its waiting for the device: its count of updates stays on the host."""

    @torch.no_grad()
    def update_parameters(self, net: nn.Module) -> None:
        averaged, current = [*self.module.parameters()], [*net.parameters()]
        if self.n_averaged == 0:
            torch._foreach_copy_(averaged, current)
        else:
            self.multi_avg_fn(averaged, current, self.n_averaged)
        for own, buffer in zip(self.module.buffers(), net.buffers()):
            own.copy_(buffer)
        self.n_averaged += 1


def average_decay(decay: float, updates: int) -> float:
    """d of the moving average after so many updates, min(decay, (1+n)/(10+n)).  The small d at first forgets the random
    initial weights at once, which a plain average drags along for thousands of steps."""
    return min(decay, (1 + updates) / (10 + updates))


def ema_update(decay: float) -> Callable:
    """Exponential moving average of weights, for `MovingAverage(net, multi_avg_fn=…)`: ema ← d·ema + (1-d)·weights
    with `average_decay`."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        torch._foreach_lerp_(averaged, current, 1 - average_decay(decay, int(num_averaged)))

    return update


def _adamw(parameters: list, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(parameters, learning_rate, betas=BETAS, weight_decay=weight_decay, fused=fused)
