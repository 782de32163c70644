"""The ideal denoisers: against Bayes' rule written out, against closed forms, and what comes of drawing with them."""

import pytest
import torch

from diffusion_utils import ideal
from diffusion_utils.data import to_float, toy_cars
from diffusion_utils.sampling import sample
from diffusion_utils.schedule import make_schedule

SCHEDULE = make_schedule("cosine", 100)
ALPHA, SIGMA = 0.6, 0.8


@pytest.fixture(scope="module")
def cars():
    return to_float(toy_cars.load(12, 16).images)


@pytest.fixture
def noisy(cars):
    return ALPHA * cars[:2] + SIGMA * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def test_weights_are_bayes_rule():
    noisy, clean = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    likelihood = torch.distributions.Normal(ALPHA * clean, SIGMA).log_prob(noisy[:, None]).sum(2).exp()
    assert torch.allclose(ideal.weights(noisy, clean, ALPHA, SIGMA), likelihood / likelihood.sum(1, keepdim=True))


def test_of_normally_distributed_numbers_it_is_the_known_posterior_mean():
    generator = torch.Generator().manual_seed(0)
    samples, noisy = torch.randn(200_000, 1, generator=generator), torch.linspace(-1.5, 1.5, 7)[:, None]
    assert torch.allclose(ideal.weights(noisy, samples, ALPHA, SIGMA) @ samples, ALPHA * noisy, atol=0.02)


def test_a_pixels_weights_are_made_of_its_patch(cars, noisy):
    w = ideal.patch_weights(noisy[0], cars, ALPHA, SIGMA, 5)
    assert w.shape == (12, 16, 16) and torch.allclose(w.sum(0), torch.ones(16, 16))
    for y, x in ((7, 9), (0, 15)):  # in the middle, and in a corner, where less is to be seen
        rows, columns = slice(max(0, y - 2), y + 3), slice(max(0, x - 2), x + 3)
        there, here = cars[:, :, rows, columns].flatten(1), noisy[:1, :, rows, columns].flatten(1)
        assert torch.allclose(w[:, y, x], ideal.weights(here, there, ALPHA, SIGMA)[0], atol=1e-4)


def test_a_patch_that_reaches_everywhere_is_the_whole_picture(cars, noisy):
    whole = ideal.whole(noisy, cars, ALPHA, SIGMA)
    assert torch.allclose(ideal.patched(noisy, cars, ALPHA, SIGMA, 31), whole, atol=1e-4)
    assert (ideal.patched(noisy, cars, ALPHA, SIGMA, 3) - whole).abs().max() > 0.1


def test_patches_from_anywhere_are_those_of_all_places(cars, noisy):
    guess = ideal.anywhere(noisy, cars[:3], ALPHA, SIGMA, 3)
    padded, around = (torch.nn.functional.pad(images, (1, 1, 1, 1)) for images in (cars[:3], noisy))
    keys = torch.stack([padded[i, :, y : y + 3, x : x + 3] for i in range(3) for y in range(16) for x in range(16)])
    values = cars[:3].permute(0, 2, 3, 1).reshape(-1, 3)
    w = ideal.weights(around[1:, :, 4:7, 9:12].flatten(1), keys.flatten(1), ALPHA, SIGMA)
    assert torch.allclose(guess[1, :, 4, 9], (w @ values)[0], atol=1e-4)
    moved = ideal.anywhere(noisy.roll(2, 3), cars[:3], ALPHA, SIGMA, 3)  # equivariant, but for the edges
    assert torch.allclose(moved[..., 4:-2], guess[..., 2:-4], atol=1e-4)


def test_drawing_with_it_gives_a_training_picture_and_with_patches_a_new_one(cars):
    drawn = sample(ideal.Ideal(cars, SCHEDULE), range(3), (3, 16, 16), "ddim", 20)
    distances = (drawn[:, None] - cars).abs().amax((2, 3, 4)).amin(1)
    assert distances.max() < 1e-4
    mosaic = sample(ideal.Ideal(cars, SCHEDULE, patch=5), range(3), (3, 16, 16), "ddim", 20)
    assert (mosaic[:, None] - cars).abs().amax((2, 3, 4)).amin() > 0.3


def test_wieners_filter_is_the_posterior_mean_of_a_normal_distribution(cars):
    pictures = cars[:, :, ::4, ::4].double()
    rows = pictures.flatten(1)
    mean, covariance = rows.mean(0), rows.T.cov(correction=0)
    gaussian, t = ideal.Gaussian(pictures, SCHEDULE), torch.tensor([10, 80])
    x_t = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for x, one, guess in zip(x_t.flatten(1), t, gaussian(x_t, t).flatten(1)):
        alpha, sigma = (level.item() for level in SCHEDULE.alpha_sigma(one, like=x_t[:1]))
        noisy = alpha**2 * covariance + sigma**2 * torch.eye(48)
        assert torch.allclose(guess, mean + alpha * covariance @ torch.linalg.solve(noisy, x - alpha * mean))


def test_likeness_is_1_for_the_same_and_minus_1_for_the_opposite(cars):
    mean = cars.mean(0)
    assert ideal.likeness(cars, cars, mean) == pytest.approx(1)
    assert ideal.likeness(2 * mean - cars, cars, mean) == pytest.approx(-1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"patch": 4}, "patch must be odd, so that it has a pixel in its middle, not 4"),
        ({"patch": -1}, "patch must be odd"),
        ({"anywhere": True}, "whole pictures have one place only: give a patch"),
    ],
)
def test_what_cannot_be_is_said(cars, options, message):
    with pytest.raises(ValueError, match=message):
        ideal.Ideal(cars, SCHEDULE, **options)


def test_pictures_of_bytes_and_several_timesteps_are_refused(cars):
    with pytest.raises(ValueError, match="expected float pictures .* not torch.uint8"):
        ideal.Ideal(toy_cars.load(2, 16).images, SCHEDULE)
    with pytest.raises(ValueError, match="one timestep for the whole batch"):
        ideal.Ideal(cars, SCHEDULE)(cars[:2], torch.tensor([3, 4]))


@pytest.mark.parametrize("kind", [ideal.Ideal, ideal.Gaussian])
def test_pictures_of_another_range_or_shape_are_refused(cars, kind):
    with pytest.raises(ValueError, match="numbers from .* to .*: see data.to_float"):
        kind(127.5 * (cars + 1), SCHEDULE)
    with pytest.raises(ValueError, match=r"the pictures known are \(3, 16, 16\): give shape="):
        kind(cars, SCHEDULE)(torch.zeros(1, 3, 8, 32), torch.tensor([3]))
    ideal.Ideal(cars, SCHEDULE, 3, anywhere=True)(torch.zeros(1, 3, 8, 12), torch.tensor([3]))  # has no place
