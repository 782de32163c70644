"""Measures of a denoiser, against brute force."""

import numpy as np
import pytest
import torch
from torch import nn

from diffusion_utils.data import to_float
from diffusion_utils.evaluation import covariance_eigenvalues, error_per_timestep, linear_bottleneck_error, reach
from diffusion_utils.prediction import PREDICTION_TYPES, Denoiser
from diffusion_utils.schedule import linear

every_type = pytest.mark.parametrize("kind", PREDICTION_TYPES)
every_noise = pytest.mark.parametrize("noise_to_signal", [0.1, 0.7, 1.0, 3.0, 20.0])


def pictures(N=12, size=4, seed=0):
    """Random pictures in which neighbouring values agree somewhat, as they do in real ones."""
    x = torch.rand(N, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return (x + x.roll(1, 2) + x.roll(1, 3)).mul(85).to(torch.uint8)


# The best linear network through a bottleneck


def spectrum(D=10):
    return torch.logspace(1, -2, D, dtype=torch.float64)


@every_type
@every_noise
def test_without_a_bottleneck_every_type_reaches_the_wiener_error(kind, noise_to_signal):
    lam = spectrum()
    wiener = lam * noise_to_signal**2 / (lam + noise_to_signal**2)
    error = linear_bottleneck_error(lam, noise_to_signal, len(lam), kind)
    assert error == pytest.approx(float(wiener.sum() / lam.sum()), rel=1e-9)


@every_type
@every_noise
def test_a_wider_bottleneck_is_never_worse(kind, noise_to_signal):
    errors = [linear_bottleneck_error(spectrum(), noise_to_signal, k, kind) for k in range(11)]
    assert all(a >= b - 1e-12 for a, b in zip(errors, errors[1:]))
    assert errors[0] > errors[-1] > 0


@every_noise
def test_with_no_bottleneck_at_all_the_answer_is_0(noise_to_signal):
    lam = spectrum()
    share = noise_to_signal**2
    assert linear_bottleneck_error(lam, noise_to_signal, 0, "sample") == pytest.approx(1)
    # ε̂ = 0 leaves all noise in x̂₀ = x_t/α: its variance is (σ/α)² in each of the D directions.
    expected = share * len(lam) / float(lam.sum())
    assert linear_bottleneck_error(lam, noise_to_signal, 0, "epsilon") == pytest.approx(expected)


def reduced_rank(covariance, noise_to_signal, rank, kind):
    """The same by brute force: fit the best matrix of that rank, and measure x̂₀'s error.

    Nothing is diagonal here: with S = cov(x_t) the error of a matrix M that answers `target` is
    |(B - M) S^½|² plus a constant, for the unrestricted regression B; its best approximation of
    rank k is the truncated SVD of B S^½ (Eckart & Young 1936).
    """
    D, identity = len(covariance), np.eye(len(covariance))
    alpha = 1 / np.sqrt(1 + noise_to_signal**2)
    sigma = alpha * noise_to_signal
    # Everything as linear maps of the independent pair (x0, ε), whose covariance is `pair`.
    pair = np.block([[covariance, 0 * identity], [0 * identity, identity]])
    x0, noise = np.hstack([identity, 0 * identity]), np.hstack([0 * identity, identity])
    x_t = alpha * x0 + sigma * noise
    d = np.sqrt(np.trace(covariance) / D)
    n = np.sqrt(alpha**2 * d**2 + sigma**2)
    target = {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": alpha * noise - sigma * x0,
        "edm": (sigma / d * x0 - alpha * d * noise) / n,
        "flow_prediction": noise - x0,
    }[kind]
    S = x_t @ pair @ x_t.T
    values, vectors = np.linalg.eigh(S)
    root = vectors * np.sqrt(values) @ vectors.T
    u, s, vt = np.linalg.svd(target @ pair @ x_t.T @ np.linalg.inv(root))
    M = (u[:, :rank] * s[:rank]) @ vt[:rank] @ np.linalg.inv(root)
    assert np.linalg.matrix_rank(M, tol=1e-9) <= rank <= D
    output = M @ x_t
    guess = {
        "epsilon": (x_t - sigma * output) / alpha,
        "sample": output,
        "v_prediction": alpha * x_t - sigma * output,
        "edm": alpha * (d / n) ** 2 * x_t + sigma * d / n * output,
        "flow_prediction": (x_t - sigma * output) / (alpha + sigma),
    }[kind]
    error = guess - x0
    return np.trace(error @ pair @ error.T) / np.trace(covariance)


@every_type
@every_noise
@pytest.mark.parametrize("rank", [0, 1, 3, 5, 6])
def test_the_bottleneck_formula_against_brute_force(kind, noise_to_signal, rank):
    mix = np.random.default_rng(0).normal(size=(6, 6)) * [2, 1, 0.7, 0.3, 0.2, 0.05]
    covariance = mix @ mix.T
    eigenvalues = torch.from_numpy(np.linalg.eigvalsh(covariance)[::-1].copy())
    formula = linear_bottleneck_error(eigenvalues, noise_to_signal, rank, kind)
    assert formula == pytest.approx(reduced_rank(covariance, noise_to_signal, rank, kind), rel=1e-7)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_at_high_noise_epsilon_needs_the_wider_bottleneck(rank):
    lam = spectrum()
    epsilon, sample = (linear_bottleneck_error(lam, 20.0, rank, kind) for kind in ("epsilon", "sample"))
    assert epsilon > 10 * sample


# Eigenvalues


@pytest.mark.parametrize("N", [5, 48, 49, 200])  # fewer and more pictures than the 48 numbers
def test_eigenvalues_agree_with_numpy(N):
    images = pictures(N)
    flat = to_float(images).flatten(1).double().numpy()
    expected = np.linalg.eigvalsh(np.cov(flat.T, bias=True))[::-1]
    values = covariance_eigenvalues(images)
    assert values.shape == (48,) and values.dtype == torch.float64
    assert (values >= 0).all() and (values.diff() <= 0).all()
    np.testing.assert_allclose(values, expected, atol=1e-5 * expected[0])
    # Their sum is the variance.
    assert values.sum().item() == pytest.approx(flat.var(0).sum(), rel=1e-5)
    if N < 48:
        assert (values[N:] == 0).all()


# Error per timestep


class Answer(nn.Module):
    """A network that gives prepared answers, one batch after the other, from the start again."""

    def __init__(self, answers):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))  # tells the device
        self.answers, self.position = answers, 0
        self.seen = []

    def forward(self, x_t, t):
        self.seen.append((x_t, t))
        batch = self.answers[self.position : self.position + len(x_t)]
        self.position = (self.position + len(x_t)) % len(self.answers)
        return batch


def measured(answers, images, **options):
    net = Answer(answers)
    denoiser = Denoiser(net, linear(100), "sample")
    return error_per_timestep(denoiser, images, [0, 50, 99], **options), net


@pytest.mark.parametrize("batch_size", [1, 5, 12, 256])
def test_perfect_is_0_and_the_mean_picture_is_1(batch_size):
    images = pictures()
    x0 = to_float(images)
    assert measured(x0, images, batch_size=batch_size)[0] == [0, 0, 0]
    mean = x0.mean(0).expand_as(x0)
    assert measured(mean, images, batch_size=batch_size)[0] == pytest.approx([1] * 3, rel=1e-5)
    # Twice the deviation is four times the error.
    assert measured(2 * mean - x0, images)[0] == pytest.approx([4] * 3, rel=1e-5)


def test_the_measured_pictures_are_noisy_at_the_asked_timesteps():
    images = pictures()
    _, net = measured(to_float(images), images, batch_size=8)
    assert [(len(x), t.unique().tolist()) for x, t in net.seen] == [
        (8, [0]),
        (4, [0]),
        (8, [50]),
        (4, [50]),
        (8, [99]),
        (4, [99]),
    ]
    schedule = linear(100)
    noises = []
    for i, t in enumerate((0, 50, 99)):
        x_t = torch.cat([net.seen[2 * i][0], net.seen[2 * i + 1][0]])
        alpha, sigma = schedule.alpha_sigma(t, like=x_t)
        noises.append((x_t - alpha * to_float(images)) / sigma)
    assert abs(noises[0].std() - 1) < 0.1 and abs(noises[0].mean()) < 0.1
    for noise in noises[1:]:  # the same noise at each
        torch.testing.assert_close(noise, noises[0], rtol=0, atol=1e-3)


def test_the_seed_decides_the_noise():
    images = pictures()
    runs = [measured(to_float(images), images, seed=s)[1].seen[0][0] for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@every_type
def test_the_formula_predicts_what_a_best_linear_denoiser_measures(kind):
    # The Wiener filter, fitted to the very pictures, measured with error_per_timestep.
    images = pictures(400, size=2, seed=3)
    flat = to_float(images).flatten(1).double()
    mean, covariance, schedule, t = flat.mean(0), flat.T.cov(correction=0), linear(100), 15
    values, vectors = torch.linalg.eigh(covariance)
    alpha, sigma = (v.item() for v in schedule.alpha_sigma(t, like=flat[:1]))

    class Wiener(nn.Linear):
        def forward(self, x_t, steps):
            along = (x_t.flatten(1).double() - alpha * mean) @ vectors
            share = alpha * values / (alpha**2 * values + sigma**2)
            guess = mean + (along * share) @ vectors.T
            return guess.view_as(x_t).float()

    denoiser = Denoiser(Wiener(1, 1), schedule, "sample")
    error = error_per_timestep(denoiser, images, [t])[0]
    eigenvalues = covariance_eigenvalues(images)
    formula = linear_bottleneck_error(eigenvalues, sigma / alpha, len(eigenvalues), kind)
    assert error == pytest.approx(formula, rel=0.05)  # one draw of noise for 4800 numbers
    assert 0.1 < formula < 0.9


def test_bottleneck_error_refuses_what_it_cannot_mean():
    spectrum = torch.ones(5)
    with pytest.raises(ValueError, match="unknown prediction_type 'x0'"):
        linear_bottleneck_error(spectrum, 1, 2, "x0")
    for ratio, rank in ((0, 2), (1, 6), (1, -1)):
        with pytest.raises(ValueError, match=r"rank lie in \[0, 5\]"):
            linear_bottleneck_error(spectrum, ratio, rank, "sample")


# How far a pixel looks


class Looks(nn.Module):
    """A number of the answer is the sum of that channel over a window, or over everything."""

    def __init__(self, window: int | None):
        super().__init__()
        self.window = window

    def forward(self, x, t):
        if self.window is None:
            return x.sum((2, 3), keepdim=True).expand_as(x)
        return nn.functional.avg_pool2d(x, self.window, 1, self.window // 2)


def test_the_reach_of_a_window_is_its_own():
    def shares(window, **options):
        return reach(Denoiser(Looks(window), linear(100), "sample"), pictures(200, size=9), 30, **options).tolist()

    assert shares(1) == pytest.approx([1] * 9)
    within = shares(3)
    # Nine places, six at an edge and four in a corner: of 9×9 pixels 49, 28 and 4.
    assert within[0] == pytest.approx((49 / 9 + 28 / 6 + 4 / 4) / 81, abs=0.01) and within[1:] == pytest.approx([1] * 8)
    whole, seen = shares(None), 9 * torch.rand(10_000, 2, generator=torch.Generator().manual_seed(0))
    places = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    distances = (seen.long()[:, None] - places).abs().amax(2)
    assert whole == pytest.approx([(distances <= far).float().mean().item() for far in range(9)], abs=0.03)
    assert shares(3, seed=1) != within and shares(3) == within


def test_a_reach_counts_squares_and_leaves_no_gradients():
    """Its own pixel with 3, the next one with 1: nine tenths of the sensitivity are its own."""

    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.tensor([3.0, 1.0]))

        def forward(self, x, t):
            return self.weights[0] * x + self.weights[1] * x.roll(1, 3)

    denoiser = Denoiser(Weighted(), linear(100), "sample")
    with torch.no_grad():
        own = reach(denoiser, pictures(20, size=8), 5)[0]
    assert own == pytest.approx(0.9) and denoiser.net.weights.grad is None


def test_errors_and_reach_refuse_what_has_no_answer():
    denoiser, images = Denoiser(Looks(3), linear(100), "sample"), pictures(4, size=8)
    for t in (-1, 100):
        for measure, asked in ((reach, t), (error_per_timestep, [50, t])):
            with pytest.raises(ValueError, match=rf"timesteps must lie in \[0, 99\], not {t}"):
                measure(denoiser, images, asked)
    with pytest.raises(ValueError, match="4 pictures and 2 conditions"):
        error_per_timestep(denoiser, images, [5], cond=torch.zeros(2, 1))
    with pytest.raises(ValueError, match="the pictures do not differ"):
        error_per_timestep(denoiser, images[:1], [5])
    blank = Denoiser(lambda x, t: 0 * x, linear(100), "sample")
    blank.net.parameters = lambda: iter(())
    with pytest.raises(ValueError, match="does not depend on x_t"):
        reach(blank, images, 5)
