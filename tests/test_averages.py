"""Averages of weights, put together after a run, against averages that were kept during it."""

import pytest
import torch

from diffusion_utils.training.averages import mix, mixture, profile
from diffusion_utils.training.optimizers import MovingAverage, ema_update

STEPS, SHORT, LONG = 400, 0.9, 0.98


def walk(decay):
    """The weights on a random walk with a drift, and their average after each step."""
    torch.manual_seed(0)
    net = torch.nn.Linear(8, 4)
    average = MovingAverage(net, multi_avg_fn=ema_update(decay))
    for _ in range(STEPS):
        with torch.no_grad():
            for weight in net.parameters():
                weight += 0.02 + 0.1 * torch.randn_like(weight)
        average.update_parameters(net)
        yield net, {name: value.clone() for name, value in average.module.state_dict().items()}


@pytest.mark.parametrize("decay", [0.0, SHORT, LONG])
def test_a_profile_says_what_each_step_counts(decay):
    passed = [(net.weight.detach().clone().double(), average) for net, average in walk(decay)]
    weights = torch.stack([weight for weight, _ in passed])
    for step in (1, 7, STEPS):
        shares = profile(step, decay, STEPS)
        assert shares.sum().item() == pytest.approx(1) and not shares[step:].any()
        expected = torch.einsum("s,sij->ij", shares, weights)
        torch.testing.assert_close(passed[step - 1][1]["weight"].double(), expected, rtol=1e-4, atol=1e-5)


def test_snapshots_of_a_short_average_make_up_a_long_one():
    kept = {n: average for n, (_, average) in enumerate(walk(SHORT), 1) if n % 10 == 0}
    shares = mixture([*kept], SHORT, LONG)
    assert shares.sum().item() == pytest.approx(1)
    mixed = mix([*kept.values()], shares)
    wanted = [average for _, average in walk(LONG)][-1]
    last = kept[STEPS]
    for name, value in mixed.items():
        assert value.dtype == torch.float32
        assert (value - wanted[name]).norm() < 0.05 * (last[name] - wanted[name]).norm()


def test_the_same_length_is_the_last_snapshot_and_a_shorter_one_is_refused():
    torch.testing.assert_close(mixture([10, 20, 30], SHORT, SHORT), torch.tensor([0.0, 0, 1]).double())
    with pytest.raises(ValueError, match="0.8 is less"):
        mixture([10, 20], SHORT, 0.8)
