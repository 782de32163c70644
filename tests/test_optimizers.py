"""The optimizers: Muon's updates of matrices, and AdamW for everything else."""

import math
from copy import deepcopy

import pytest
import torch

from diffusion_utils import networks
from diffusion_utils.training import optimizers
from diffusion_utils.training.optimizers import BETAS, make_optimizer, orthogonalized

RATE = 0.01
SMALL = {
    "resnet": {"channels": (8, 16), "stem": 2, "skip": "concat", "decoder_depth": 1, "attention": (2,)},
    "segnet": {"channels": (8, 16)},
    "unet": {"channels": (8, 16), "depth": 1},
    "dit": {"dim": 24, "depth": 2, "patch": 2},
    "mixer": {"size": 8, "patch": 2, "dim": 16, "depth": 2},
}
every_network = pytest.mark.parametrize("name", SMALL)


@pytest.fixture
def bf16(monkeypatch):
    """As on a device that multiplies bfloat16 in hardware, which torch's own Muon takes for granted."""
    monkeypatch.setattr(optimizers, "bf16_is_native", lambda device: True)


def start(name="resnet", optimizer="muon", weight_decay=0.0):
    torch.manual_seed(0)
    net = networks.build(name, embedding_dim=16, **SMALL[name])
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return net, make_optimizer(optimizer, net, RATE, weight_decay)


def backward(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, wanted = torch.randn(2, 4, 3, 8, 8, generator=generator)
    (net(x, torch.tensor([0, 10, 500, 999])) - wanted).square().mean().backward()


def weights(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def is_hidden_matrix(name, value):
    return value.dim() > 1 and name.split(".")[0] not in ("stem", "head", "embed")


@every_network
def test_the_update_of_a_hidden_matrix_is_nearly_orthogonal(name):
    net, optimizer = start(name)
    before = weights(net)
    backward(net)
    gradients = {n: p.grad.clone() for n, p in net.named_parameters()}
    optimizer.step()
    checked = 0
    for n, after in weights(net).items():
        if not is_hidden_matrix(n, after):
            continue
        update = (before[n] - after).flatten(1) / RATE
        left, values, right = torch.linalg.svd(gradients[n].flatten(1), full_matrices=False)
        # Along the gradient's own directions, however much they differ in size; the smallest ones
        # would take more than Muon's five iterations.
        grown = (left.T @ update @ right.T).diagonal() / (0.2 * math.sqrt(max(update.shape)))
        large = values > 0.02 * values.norm()
        assert 0.5 < grown[large].min() and grown.max() < 1.4, n
        assert update.square().mean().sqrt() < 0.3  # about 0.2, as AdamW's after its first steps
        checked += 1
    assert checked >= 8


@every_network
def test_the_rest_follows_adamw_exactly(name):
    net, optimizer = start(name, weight_decay=0.1)
    twin, _ = start(name)
    rest = {n: p for n, p in twin.named_parameters() if not is_hidden_matrix(n, p)}
    adamw = torch.optim.AdamW(rest.values(), RATE, betas=BETAS, weight_decay=0.1, fused=True)
    before = weights(net)
    for seed in range(3):
        backward(net, seed)
        for n, p in net.named_parameters():
            if n in rest:
                rest[n].grad = p.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        adamw.step()
    after = weights(net)
    assert all(torch.equal(after[n], rest[n]) for n in rest)
    inner = {"unet": "up", "dit": "blocks", "mixer": "blocks"}.get(name, "decoder")  # whose biases are no matrices
    assert {n.split(".")[0] for n in rest} >= {"embed", "head", inner}
    assert all(not torch.equal(after[n], before[n]) for n in after)  # and nothing is left out


@pytest.mark.parametrize("native", [True, False])
def test_muon_multiplies_in_bfloat16_only_where_that_is_fast(native, monkeypatch):
    monkeypatch.setattr(optimizers, "bf16_is_native", lambda device: native)
    matrix = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    update = orthogonalized(matrix)
    assert update.dtype == (torch.bfloat16 if native else torch.float32)
    assert ((torch.linalg.svdvals(update.float()) - 1).abs() < 0.4).all()


@pytest.mark.usefixtures("bf16")
def test_muon_keeps_a_momentum_and_shrinks_weights():
    """Two steps by hand, in torch's own Muon on a convolution written as a matrix."""
    net, optimizer = start(weight_decay=0.5)
    name = next(n for n, p in net.named_parameters() if n.endswith("conv2.weight"))
    weight = dict(net.named_parameters())[name]
    matrix = torch.nn.Parameter(weight.detach().flatten(1).clone())
    alone = torch.optim.Muon([matrix], RATE, weight_decay=0.5, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for seed in range(2):
        backward(net, seed)
        matrix.grad = weight.grad.flatten(1).clone()
        optimizer.step()
        optimizer.zero_grad()
        alone.step()
        assert torch.equal(weight.flatten(1), matrix)


def test_clearing_gradients_leaves_none():
    net, optimizer = start()
    backward(net)
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    before = weights(net)
    optimizer.step()  # and none of the last step's gradients acts again
    assert all(torch.equal(value, before[n]) for n, value in weights(net).items())


@pytest.mark.parametrize("resumed", [False, True])
def test_the_learning_rate_of_every_group_can_be_set(resumed):
    net, optimizer = start()
    if resumed:
        optimizer.load_state_dict(start()[1].state_dict())
    before = weights(net)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    backward(net)
    optimizer.step()
    assert all(torch.equal(value, before[n]) for n, value in weights(net).items())


def test_muon_goes_on_from_its_state(tmp_path):
    net, optimizer = start()
    for seed in range(3):
        backward(net, seed)
        optimizer.step()
        optimizer.zero_grad()
        if seed == 0:
            torch.save((net.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    twin, other = start()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    twin.load_state_dict(state[0])
    other.load_state_dict(state[1])
    for seed in (1, 2):
        backward(twin, seed)
        other.step()
        other.zero_grad()
    assert all(torch.equal(value, weights(net)[n]) for n, value in weights(twin).items())


@pytest.mark.usefixtures("bf16")
def test_muon_goes_on_from_the_state_of_an_earlier_version():
    """Which kept two optimizers, torch's Muon on matrices and AdamW, and stored the state of each."""
    net, optimizer = start(weight_decay=0.1)
    twin, _ = start()
    named = list(twin.named_parameters())
    inner, rest = ([p for n, p in named if is_hidden_matrix(n, p) == hidden] for hidden in (True, False))
    matrices = [torch.nn.Parameter(p.detach().view(len(p), -1)) for p in inner]
    muon = torch.optim.Muon(matrices, RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, RATE, betas=BETAS, weight_decay=0.1, fused=True)
    for seed in range(4):
        if seed == 2:
            net.load_state_dict(twin.state_dict())
            optimizer.load_state_dict(deepcopy({"muon": muon.state_dict(), "adamw": adamw.state_dict()}))
        if seed >= 2:
            backward(net, seed)
            optimizer.step()
            optimizer.zero_grad()
        twin.zero_grad()
        backward(twin, seed)
        for matrix, weight in zip(matrices, inner):
            matrix.grad = weight.grad.flatten(1)
        muon.step()
        adamw.step()
    assert all(torch.equal(value, weights(net)[n]) for n, value in weights(twin).items())
    assert optimizer.state_dict().keys() == {"state", "param_groups"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_under_a_scaled_loss_equal_those_without_and_overflow_skips_one(optimizer):
    net, plain = start(optimizer=optimizer)
    twin, scaled = start(optimizer=optimizer)
    assert isinstance(scaled, torch.optim.Optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # a power of 2 changes no digit
    for seed in range(3):
        backward(net, seed)
        plain.step()
        plain.zero_grad()
        for attempt in range(2 if seed == 1 else 1):
            backward(twin, seed)
            scaler.scale(torch.zeros(()))
            with torch.no_grad():
                for parameter in twin.parameters():
                    parameter.grad *= scaler.get_scale()
                if seed == 1 and attempt == 0:
                    next(twin.parameters()).grad[0] = math.inf
            scaler.unscale_(scaled)
            before, broken = weights(twin), seed == 1 and attempt == 0
            scaler.step(scaled)
            scaler.update()
            assert all(torch.equal(value, before[n]) for n, value in weights(twin).items()) == broken
            scaled.zero_grad()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(value, weights(net)[n]) for n, value in weights(twin).items())


def test_a_step_may_compute_its_own_gradients():
    (net, optimizer), (twin, other) = start(), start()
    backward(net)
    optimizer.step()

    def closure():
        backward(twin)
        return torch.tensor(3.0)

    assert other.step(closure) == 3
    assert all(torch.equal(value, weights(net)[n]) for n, value in weights(twin).items())


def test_adamw_is_torchs():
    net, optimizer = start(optimizer="adamw", weight_decay=0.1)
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (RATE, (0.9, 0.99), 0.1)
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]
