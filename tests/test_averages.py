"""Averages of weights, put together after a run, against averages that were kept during it."""

import pytest
import torch

from diffusion_utils.training.averages import exponential, mix, mixture, power
from diffusion_utils.training.optimizers import MovingAverage, ema_update

STEPS, SHORT, LONG = 400, 0.9, 0.97


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
        yield net.weight.detach().clone().double(), {name: w.clone() for name, w in average.module.state_dict().items()}


@pytest.mark.parametrize("decay", [0.0, SHORT, LONG])
def test_a_profile_says_what_each_step_counts(decay):
    passed = [*walk(decay)]
    weights = torch.stack([weight for weight, _ in passed])
    for step in (1, 7, STEPS):
        shares = exponential(step, decay, STEPS)
        assert shares.sum().item() == pytest.approx(1) and not shares[step:].any()
        expected = torch.einsum("s,sij->ij", shares, weights)
        torch.testing.assert_close(passed[step - 1][1]["weight"].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", [0, 2, 9])
def test_the_weights_of_a_power_profile_are_as_old_as_it_says(gamma):
    shares = power(STEPS, gamma)
    age = (shares * torch.arange(STEPS - 1, -1, -1)).sum().item()
    assert shares.sum().item() == pytest.approx(1) and age == pytest.approx(STEPS / (gamma + 2), abs=0.6)


def test_snapshots_of_a_short_average_make_up_longer_ones():
    kept = {n: average for n, (_, average) in enumerate(walk(SHORT), 1) if n % 10 == 0}
    profiles = [exponential(step, SHORT, STEPS) for step in kept]
    passed = [*walk(LONG)]
    weights = torch.stack([weight for weight, _ in passed])
    for profile in (exponential(STEPS, LONG, STEPS), power(STEPS, 3)):
        shares = mixture(profiles, profile)
        assert shares.sum().item() == pytest.approx(1)
        mixed, wanted = mix([*kept.values()], shares), torch.einsum("s,sij->ij", profile, weights)
        assert mixed["weight"].dtype == torch.float32 and mixed.keys() == kept[STEPS].keys()
        assert (mixed["weight"] - wanted).norm() < 0.1 * (kept[STEPS]["weight"] - wanted).norm()


def test_the_same_average_is_the_last_snapshot_and_a_shorter_one_is_refused():
    profiles = [exponential(step, SHORT, 30) for step in (10, 20, 30)]
    torch.testing.assert_close(mixture(profiles, profiles[-1]), torch.tensor([0.0, 0, 1]).double())
    with pytest.raises(ValueError, match="no mixture comes near"):
        mixture(profiles, exponential(30, 0.3, 30))


def test_what_cannot_be_mixed_is_said():
    profile = exponential(10, SHORT, 10)
    for step in (0, -3, 11):
        with pytest.raises(ValueError, match=rf"step must lie in \[1, 10\], not {step}"):
            exponential(step, SHORT, 10)
    with pytest.raises(ValueError, match="no snapshots to mix"):
        mixture([], profile)
    with pytest.raises(ValueError, match="no mixture comes near"):
        mixture([0 * profile], profile)
    snapshots = [{"weight": torch.ones(2), "count": torch.tensor(100)}] * 3
    with pytest.raises(ValueError, match="3 snapshots and 2 shares"):
        mix(snapshots, torch.tensor([0.5, 0.5]))
    mixed = mix(snapshots, torch.tensor([0.3, 0.3, 0.4]))
    assert mixed["count"] == 100 and mixed["count"].dtype == torch.int64
