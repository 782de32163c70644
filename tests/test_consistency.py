"""Consistency tuning: the distance of the two points, the loss, and what it makes of a denoiser."""

import math

import pytest
import torch
from torch import nn

from diffusion_utils.data import to_float
from diffusion_utils.prediction import PREDICTION_TYPES, Denoiser, target
from diffusion_utils.sampling import sample
from diffusion_utils.schedule import make_schedule
from diffusion_utils.training import TrainConfig, train
from diffusion_utils.training.consistency import BOUNDARY, cleaner_level, consistency_loss

SCHEDULE = make_schedule("cosine", 1000)
LEVELS = SCHEDULE.snr() ** -0.5


@pytest.mark.parametrize("stage", [0, 1, 5])
def test_the_cleaner_level_is_that_of_the_paper(stage):
    for level in (0.001, 0.3, 1.0, 7.0, 500.0):
        n = 1 + 8 / (1 + math.exp(level))
        expected = level * max(0.0, 1 - n / 2 ** (stage + 1))
        assert cleaner_level(torch.tensor(level, dtype=torch.float64), stage).item() == pytest.approx(expected)


def test_the_two_points_come_closer_with_every_stage_and_never_meet():
    levels = torch.linspace(0.01, 80, 200, dtype=torch.float64)
    gaps = torch.stack([levels - cleaner_level(levels, stage) for stage in range(8)])
    assert (gaps[1:] <= gaps[:-1]).all() and (gaps > 0).all()
    assert torch.equal(gaps[0][levels < 1], levels[levels < 1])  # at first little noise is taught by the picture


class Knows(nn.Module):
    """Answers with a fixed picture, times a weight."""

    def __init__(self, picture):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.picture = picture

    def forward(self, x_t, t, cond=None):
        return self.weight * self.picture.expand_as(x_t)


def example(t, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(len(t), 3, 4, 4, generator=generator) for _ in range(2))
    return x0, noise, torch.tensor(t)


def by_hand(net, x0, noise, t, stage):
    """The loss of one picture at a time, for a network that is asked for x₀."""

    def answer(step, x):
        alpha, sigma = SCHEDULE.alpha_sigma(step, like=x)
        x_t = alpha * x + sigma * noise[i : i + 1]
        kept = BOUNDARY**2 / (LEVELS[step].float() ** 2 + BOUNDARY**2)
        return kept * x_t / alpha + (1 - kept) * net(x_t, torch.tensor([step]))

    losses = []
    for i in range(len(x0)):
        here, level = x0[i : i + 1], LEVELS[t[i]]
        below = [step for step in range(int(t[i])) if LEVELS[step] <= cleaner_level(level, stage)]
        teacher, gap = (answer(below[-1], here).detach(), level - LEVELS[below[-1]]) if below else (here, level)
        losses.append((answer(int(t[i]), here) - teacher).square().mean().sqrt() / gap)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("stage", [0, 3, 7])
def test_the_loss_and_its_gradient_are_those_computed_by_hand(stage):
    x0, noise, t = example([0, 3, 40, 300, 700, 999])
    net = nn.Conv2d(3, 3, 3, padding=1)

    def call(x_t, t, cond=None):
        return net(x_t) + t.view(-1, 1, 1, 1) / 1000

    loss = consistency_loss(Denoiser(call, SCHEDULE, "sample"), x0, noise, t, stage)
    expected = by_hand(call, x0, noise, t, stage)
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(each, net.weight)[0] for each in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_who_knows_the_picture_makes_no_error():
    x0, noise, t = example([300, 320, 350])  # taught by the picture itself, at first
    loss, other = (
        consistency_loss(Denoiser(Knows(picture), SCHEDULE, "sample"), x0, noise, t, 0) for picture in (x0, -x0)
    )
    assert loss < 0.02 and other > 1


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_every_prediction_type_can_be_tuned(prediction_type):
    x0, noise, t = example([400, 800])
    seen = []

    def exact(x_t, steps):
        """Answers rightly, whatever it is asked."""
        seen.append(steps)
        return target(prediction_type, x0, noise, *SCHEDULE.alpha_sigma(steps, like=x0), 0.5)

    assert consistency_loss(Denoiser(exact, SCHEDULE, prediction_type), x0, noise, t, 4) < 0.01
    assert (seen[0] < seen[1]).all() or (seen[1] < seen[0]).all()


def test_the_condition_reaches_teacher_and_student():
    x0, noise, t = example([60, 500])
    given = []

    def net(x_t, steps, cond):
        given.append(cond)
        return x_t

    cond = torch.tensor([[1.0], [2.0]])
    consistency_loss(Denoiser(net, SCHEDULE, "sample"), x0, noise, t, 4, cond=cond)
    assert len(given) == 2 and all(each is cond for each in given)


NETWORK = {"name": "resnet", "channels": [16], "stem": 2, "embedding_dim": 16}


def run(**changes):
    options = {
        "network": NETWORK,
        "steps": 300,
        "batch_size": 64,
        "log_every": 400,
        "learning_rate": 5e-3,
        "warmup_steps": 20,
        "ema_decay": 0.98,
        "mixed_precision": "no",
        "compile": "no",
        "weight_decay": 0.0,
    }
    return TrainConfig(**{**options, **changes})


def test_a_tuned_network_reaches_a_picture_in_one_step():
    """The pictures are all dark or all light.  Asked what pure noise will become, a denoiser answers
    with grey, the mean of both; the tuned one decides, and for either about as often."""
    images = torch.tensor([30, 220], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    dark, light = to_float(images)[:, 0, 0, 0]
    (teacher,) = train(run(), images)
    tuning = run(objective="consistency", steps=400, learning_rate=1e-3)
    (student,) = train(tuning, images, start=teacher.denoiser.net)
    for record, steps, low, high in ((teacher, 1, 0.3, 1.0), (student, 1, 0.0, 0.1), (student, 2, 0.0, 0.05)):
        drawn = sample(record.denoiser, range(64), (3, 4, 4), "consistency", steps).mean((1, 2, 3))
        distance = torch.minimum((drawn - dark).abs(), (drawn - light).abs()).mean()
        assert low <= distance <= high, (steps, distance)
    assert 0.2 < (drawn > 0).float().mean() < 0.8


def test_tuning_needs_something_to_tune():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="tunes a trained network: give start"):
        next(train(run(objective="consistency"), images))
    with pytest.raises(ValueError, match="leave zero_terminal_snr out"):
        run(objective="consistency", zero_terminal_snr=True)
    with pytest.raises(ValueError, match="leave schedule flow out"):
        run(objective="consistency", schedule="flow")
    with pytest.raises(ValueError, match="objective must be one of denoising, consistency"):
        run(objective="distillation")


def test_it_starts_with_the_weights_it_is_given():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    (teacher,) = train(run(steps=2), images)
    options = {"learning_rate": 1e-12, "steps": 1, "log_every": 1}
    (record,) = train(run(**options), images, start=teacher.denoiser.net)
    for one, other in zip(teacher.denoiser.net.parameters(), record.denoiser.net.parameters()):
        torch.testing.assert_close(one, other)
