"""The training loop: what it computes, what it reports, and what it refuses."""

import json
import math
import signal
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel

from diffusion_utils import networks
from diffusion_utils.data import root_mean_square, to_float, toy_cars
from diffusion_utils.data.order import _epoch_order, batch_indices
from diffusion_utils.prediction import PREDICTION_TYPES, Denoiser
from diffusion_utils.sampling import sample, stream
from diffusion_utils.schedule import make_schedule
from diffusion_utils.training import StepRecord, TrainConfig, load_checkpoint, train
from diffusion_utils.training.arithmetic import bf16_is_native
from diffusion_utils.training.batches import Batch, Batches, make_batch, make_cond, shifted
from diffusion_utils.training.loop import make_objective
from diffusion_utils.training.optimizers import ema_update

TINY = {"name": "resnet", "channels": [8, 8], "stem": 2, "embedding_dim": 8}


def config(**changes):
    options = {
        "network": TINY,
        "steps": 6,
        "batch_size": 4,
        "warmup_steps": 2,
        "log_every": 1,
        "mixed_precision": "no",
        "compile": "no",
    }
    return TrainConfig(**{**options, **changes})


def pictures(count=12, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def weights(record):
    return torch.cat([p.flatten() for p in record.denoiser.net.state_dict().values()])


# ---------------------------------------------------------------- does it learn


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_one_picture_is_learnt_by_heart_and_comes_back_from_noise(prediction_type):
    """The picture has 8·8·3 = 192 numbers.  ε and v hold as many independent ones (the noise), and
    all must pass the bottleneck, here 64·4·4 = 1024.  x₀ would do with a far narrower one."""
    large = toy_cars.draw(3, size=16, colour="yellow", time="at night").float()
    picture = F.avg_pool2d(large, 2).to(torch.uint8)[None]
    network = {"name": "resnet", "channels": [64], "stem": 2, "embedding_dim": 32}
    run = config(
        network=network,
        prediction_type=prediction_type,
        steps=300,
        batch_size=32,
        log_every=300,
        learning_rate=6e-3,
        warmup_steps=20,
        ema_decay=0.98,
        weight_decay=0.0,
        flip=False,
    )
    (record,) = train(run, picture)
    drawn = sample(record.denoiser, range(4), (3, 8, 8), sampler="ddpm", steps=50)
    x0 = to_float(picture)
    one_colour = (x0 - x0.mean((2, 3), keepdim=True)).square().mean()
    for each in drawn:  # 1 would be the score of a picture in its mean colour
        assert (each - x0[0]).square().mean() < 0.05 * one_colour


# With the share of its first 20 steps' loss that each must come below in its last 20.
LEARNERS = {
    "resnet": (0.6, {"name": "resnet", "channels": [16, 32], "stem": 2}, {}),
    "skips": (0.65, {"name": "resnet", "channels": [16, 32], "stem": 2, "skip": "concat"}, {}),
    "segnet": (0.65, {"name": "segnet", "channels": [8, 16]}, {}),
    "unet": (0.7, {"name": "unet", "channels": [8, 16], "depth": 1}, {}),
    "dit": (0.65, {"name": "dit", "patch": 4, "dim": 48, "depth": 2}, {}),
    "mixer": (0.65, {"name": "mixer", "size": 16, "dim": 48, "depth": 2}, {}),
    "edm": (
        0.75,
        {"name": "resnet", "channels": [16, 32], "skip": "concat", "decoder_depth": 1},
        {"prediction_type": "edm", "timestep_sampling": "lognormal"},
    ),
    "muon": (0.6, {"name": "resnet", "channels": [16, 32], "stem": 2}, {"optimizer": "muon"}),
}


@pytest.mark.parametrize("share, network, options", LEARNERS.values(), ids=LEARNERS)
def test_the_loss_falls_on_toy_cars(share, network, options):
    images = toy_cars.load(64, 16).images
    run = config(
        network={**network, "embedding_dim": 16}, steps=80, batch_size=16, log_every=20, learning_rate=4e-3, **options
    )
    losses = [record.loss for record in train(run, images)]
    assert losses[-1] < share * losses[0]


def test_the_average_is_the_network_that_is_handed_out(tmp_path):
    *_, record = train(config(), pictures(), tmp_path)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    ema = [v for k, v in state["ema"].items() if k.startswith("module.")]
    assert torch.equal(weights(record), torch.cat([v.flatten() for v in ema]))
    assert not torch.equal(weights(record), torch.cat([v.flatten() for v in state["net"].values()]))
    assert not record.denoiser.net.training


def test_on_a_cpu_weights_lie_in_memory_as_convolutions_compute():
    *_, record = train(config(steps=1), pictures())
    kernels = [p for p in record.denoiser.net.parameters() if p.dim() == 4]
    assert any(not kernel.is_contiguous() for kernel in kernels)
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_the_same_seed_trains_the_same_network_and_another_seed_another():
    runs = [list(train(config(seed=seed), pictures()))[-1] for seed in (0, 0, 1)]
    assert torch.equal(weights(runs[0]), weights(runs[1])) and runs[0].loss == runs[1].loss
    assert not torch.equal(weights(runs[0]), weights(runs[2]))
    starts = [next(train(config(seed=seed, learning_rate=1e-12), pictures())) for seed in (0, 1)]
    assert (weights(starts[0]) - weights(starts[1])).abs().max() > 0.01  # from the first moment


def test_one_step_is_adamw_on_the_loss_with_clipped_gradient(tmp_path):
    """The first step, repeated by hand."""
    run, images = config(steps=2, checkpoint_every=1, clip_grad_norm=0.01), pictures()
    steps = train(run, images, tmp_path)
    record = next(steps)
    trained = load_checkpoint(tmp_path / "checkpoint.pt")["net"]
    steps.close()

    torch.manual_seed(0)
    net = networks.build(**TINY)
    rate = 1e-3 / 2  # the first of two warm-up steps
    optimizer = torch.optim.AdamW(net.parameters(), rate, betas=(0.9, 0.99), weight_decay=0.01)
    loss = Denoiser(net, run.make_schedule(), "sample").loss(*make_batch(images, 0, run))
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.01)
    optimizer.step()
    assert record.loss == pytest.approx(loss.item(), rel=1e-6)
    assert record.grad_norm == pytest.approx(norm.item(), rel=1e-5) and norm > 0.01
    for name, value in net.state_dict().items():
        torch.testing.assert_close(trained[name], value, atol=1e-7, rtol=1e-5)


# ---------------------------------------------------------------- the loss


class Answers(torch.nn.Module):
    """A network that answers 0.3·x + t/100, and the condition on top; it remembers what it was asked."""

    def forward(self, x, t, cond=None):
        self.asked = x, t, cond
        answer = 0.3 * x + t.view(-1, 1, 1, 1) / 100
        return answer if cond is None else answer + cond.view(-1, 1, 1, 1)


def batch_of_five():
    x0, noise = torch.randn(2, 5, 3, 4, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    return Batch(x0, noise, torch.tensor([0, 3, 30, 60, 99]))


def by_hand(prediction_type, d, batch, alphas_cumprod, cond=None):
    """One picture at a time: what the network is given, its mean squared error, SNR, and the error of x̂₀ (as a
    share of its own) that its error is worth."""
    for i in range(len(batch.t)):
        signal_share = float(alphas_cumprod[batch.t[i]])
        alpha, sigma = math.sqrt(signal_share), math.sqrt(1 - signal_share)
        snr = signal_share / (1 - signal_share)
        x0, noise = batch.x0[i].double(), batch.noise[i].double()
        x_t = alpha * x0 + sigma * noise
        strength = math.sqrt(signal_share * d**2 + 1 - signal_share)  # of x_t
        given = x_t / {"edm": strength, "flow_prediction": alpha + sigma}.get(prediction_type, 1)
        right, share = {
            "epsilon": (noise, snr),
            "sample": (x0, 1.0),
            "v_prediction": (alpha * noise - sigma * x0, snr + 1),
            "edm": ((sigma / d * x0 - alpha * d * noise) / strength, snr + 1 / d**2),
            "flow_prediction": (noise - x0, (math.sqrt(snr) + 1) ** 2),
        }[prediction_type]
        answer = 0.3 * given + int(batch.t[i]) / 100 + (0 if cond is None else float(cond[i]))
        yield given, float((answer - right).square().mean()), snr, share


@pytest.mark.parametrize("weight", [None, [0.0, 1.0, 0.5, 2.0, 3.0]])
@pytest.mark.parametrize("cond", [None, [1.0, -1.0, 0.0, 2.0, 0.5]])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("d", [0.5, 1.7])
def test_the_loss_equals_one_computed_by_hand(prediction_type, cond, weight, d):
    net, batch = Answers(), batch_of_five()
    weight, cond = (None if values is None else torch.tensor(values) for values in (weight, cond))
    denoiser = Denoiser(net, make_schedule("linear", 100), prediction_type, d)
    loss = denoiser.loss(batch.x0, batch.noise, batch.t, cond, weight)

    expected = 0.0
    pictures = by_hand(prediction_type, d, batch, denoiser.schedule.alphas_cumprod, cond)
    for i, (given, error, _, _) in enumerate(pictures):
        torch.testing.assert_close(net.asked[0][i].double(), given, atol=1e-5, rtol=1e-5)
        expected += error * (1.0 if weight is None else float(weight[i])) / 5
    assert loss.dim() == 0 and loss.item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(net.asked[1], batch.t) and net.asked[2] is cond


def test_the_loss_of_a_right_answer_is_0_and_its_gradient_reaches_the_network():
    batch, schedule = batch_of_five(), make_schedule("cosine", 100)
    scale = torch.ones((), requires_grad=True)

    class Knows(torch.nn.Module):
        def forward(self, x, t):
            return scale * batch.noise

    loss = Denoiser(Knows(), schedule, "epsilon").loss(*batch)
    assert loss.item() == 0
    with torch.no_grad():
        scale.fill_(1.5)
    loss = Denoiser(Knows(), schedule, "epsilon").loss(*batch)
    loss.backward()
    square = batch.noise.square().mean()
    torch.testing.assert_close(loss.detach(), 0.25 * square)
    torch.testing.assert_close(scale.grad, 2 * 0.5 * square)


@pytest.mark.parametrize("gamma, floor", [(None, 0.0), (5.0, 0.0), (0.7, 0.0), (5.0, 0.5)])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("d", [0.5, 1.7])
def test_training_weighs_errors_as_min_snr_does_by_hand(prediction_type, gamma, floor, d):
    floor = 0.0 if prediction_type == "epsilon" else floor  # which takes none
    batch = batch_of_five()
    run = config(prediction_type=prediction_type, min_snr_gamma=gamma, snr_floor=floor, sigma_data=d)
    denoiser = Denoiser(Answers(), make_schedule("linear", 100), prediction_type, d)
    loss = make_objective(run, denoiser)(batch, 0.0)

    expected = 0.0
    for _, error, snr, share in by_hand(prediction_type, d, batch, denoiser.schedule.alphas_cumprod):
        expected += error / 5 * (1.0 if gamma is None else max(floor, min(snr, gamma)) / share)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_min_snr_reaches_the_training_loop():
    plain, weighted = (next(train(config(min_snr_gamma=gamma), pictures())).loss for gamma in (None, 5.0))
    assert plain != pytest.approx(weighted, rel=0.01)


def test_the_floor_of_the_weights_reaches_the_training_loop():
    first = [next(train(config(min_snr_gamma=5.0, snr_floor=floor), pictures())).loss for floor in (0.0, 1.0)]
    assert first[1] > 1.01 * first[0]


def test_sigma_data_reaches_the_training_loop_and_what_it_hands_out():
    records = [next(train(config(prediction_type="edm", sigma_data=d), pictures())) for d in (0.5, 0.3)]
    assert [record.denoiser.sigma_data for record in records] == [0.5, 0.3]
    # A new network answers 0, so the first loss is the target's variance: by hand for both strengths.
    for d, record in zip((0.5, 0.3), records):
        x0, noise, t = make_batch(pictures(), 0, config())
        alpha, sigma = make_schedule("cosine").alpha_sigma(t, like=x0)
        wanted = (sigma / d * x0 - alpha * d * noise) / (alpha**2 * d**2 + sigma**2).sqrt()
        assert record.loss == pytest.approx(wanted.square().mean().item(), rel=1e-4)


def test_the_root_mean_square_of_pictures():
    images = pictures(count=5)
    expected = to_float(images).double().square().mean().sqrt().item()
    assert root_mean_square(images) == pytest.approx(expected, abs=5e-5)
    assert root_mean_square(torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)) == 1
    half = torch.cat([torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 127.0)]).to(torch.uint8)
    assert root_mean_square(half) == pytest.approx(0.5**0.5, abs=1e-3)  # black is -1, grey almost 0


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("count, batch", [(10, 5), (10, 3), (7, 4), (3, 8), (1, 4)])
def test_every_picture_is_seen_once_per_epoch(count, batch):
    steps = math.ceil(6 * count / batch)
    seen = torch.cat([batch_indices(step, batch, count, seed=0) for step in range(steps)])
    assert len(seen) == steps * batch
    epochs = [seen[i * count : (i + 1) * count].tolist() for i in range(6)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 3:  # and each time in another order
        assert len(set(map(tuple, epochs))) == 6


def test_batches_depend_on_seed_and_step_alone():
    images, run = pictures(), config(batch_size=8)
    first = make_batch(images, 5, run)
    for step in (9, 0, 4):
        make_batch(images, step, run)
    torch.manual_seed(123)
    torch.randn(7)
    _epoch_order.cache_clear()
    again = make_batch(images, 5, run)
    assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize("other", [{"step": 6}, {"seed": 1}, {"seed": 7}, {"seed": 2**32 - 1}])
def test_another_step_or_seed_gives_another_batch(other):
    """Torch's CPU generator reads only 32 bits of a seed; the run's seed must be among them."""
    images, seed = pictures(count=50), other.get("seed", 0)
    one = make_batch(images, 5, config(batch_size=32))
    two = make_batch(images, other.get("step", 5), config(batch_size=32, seed=seed))
    for a, b in zip(one, two):
        assert not torch.equal(a, b)
    assert abs(torch.corrcoef(torch.stack([one[1].flatten(), two[1].flatten()]))[0, 1]) < 0.1
    assert seed == 0 or not torch.equal(batch_indices(0, 50, 50, 0), batch_indices(0, 50, 50, seed))


@pytest.mark.parametrize("processes", [2, 4])
def test_the_shares_make_the_whole(processes):
    images, run = pictures(), config(batch_size=8)
    shares = [make_batch(images, 3, run, (i, processes)) for i in range(processes)]
    for whole, *parts in zip(make_batch(images, 3, run), *shares):
        assert {len(part) for part in parts} == {8 // processes}
        assert torch.equal(torch.cat(parts), whole)


def test_shapes_ranges_and_distribution_of_a_batch():
    run = config(batch_size=512)
    x0, noise, t = make_batch(pictures(), 0, run)
    assert x0.shape == noise.shape == (512, 3, 8, 8) and x0.dtype == torch.float32
    assert -1 <= x0.min() < -0.98 and 0.98 < x0.max() <= 1
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert t.dtype == torch.int64 and 0 <= t.min() < 20 and 980 <= t.max() < 1000
    assert abs(t.float().mean() - 499.5) < 60


def drawn_by_hand(run, step):
    """Flips, then what the timesteps come from, then noise, from one generator."""
    generator = torch.Generator().manual_seed(stream(run.seed, step))
    batch, T = run.batch_size, run.num_train_timesteps
    flips = torch.rand(batch, 1, 1, 1, generator=generator) if run.flip else None
    if run.timestep_sampling == "uniform":
        times = torch.randint(T, (batch,), generator=generator)
    else:
        times = -1.2 + 1.2 * torch.randn(batch, generator=generator)
    return flips, times, torch.randn(batch, 3, 8, 8, generator=generator)


@pytest.mark.parametrize("flip", [True, False])
def test_uniform_timesteps_are_drawn_between_flips_and_noise(flip):
    """In this order since the first version: runs of then can be repeated now."""
    run = config(batch_size=64, flip=flip, seed=3)
    _, t, noise = drawn_by_hand(run, 5)
    batch = make_batch(pictures(), 5, run)
    assert torch.equal(batch[1], noise) and torch.equal(batch[2], t)


@pytest.mark.parametrize("schedule, zero", [("linear", False), ("cosine", False), ("cosine", True), ("flow", False)])
def test_lognormal_takes_the_first_timestep_that_is_as_noisy_as_drawn(schedule, zero):
    run = config(
        batch_size=256, timestep_sampling="lognormal", schedule=schedule, num_train_timesteps=60, zero_terminal_snr=zero
    )
    _, drawn, noise = drawn_by_hand(run, 2)
    _, ours, t = make_batch(pictures(), 2, run)
    assert torch.equal(ours, noise) and t.dtype == torch.int64
    levels = run.make_schedule().snr().pow(-0.5).log().tolist()  # ln(σ/α)
    for level, step in zip(drawn.tolist(), t.tolist()):
        assert levels[step] >= level - 1e-5 or step == 59
        assert step == 0 or levels[step - 1] <= level + 1e-5


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_lognormal_noise_levels_have_karras_mean_and_deviation(schedule):
    run = config(batch_size=4000, timestep_sampling="lognormal", schedule=schedule)
    images = torch.zeros(4000, 3, 1, 1, dtype=torch.uint8)
    t = torch.cat([make_batch(images, step, run)[2] for step in range(10)])
    levels = run.make_schedule().snr(t).pow(-0.5).log()
    # Three standard errors of 40 000 draws: 0.018 and 0.013; and t rounds up.
    assert levels.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert levels.std().item() == pytest.approx(1.2, abs=0.03)


def test_logitnormal_times_of_a_flow_are_those_of_its_paper():
    """Esser et al. 2024, section 3.1: logit(τ) is standard normal; by quantiles, as T timesteps end at τ = 1."""
    run = config(batch_size=4000, timestep_sampling="logitnormal", schedule="flow")
    images = torch.zeros(4000, 3, 1, 1, dtype=torch.uint8)
    tau = (torch.cat([make_batch(images, step, run)[2] for step in range(10)]) + 1) / 1000
    expected = torch.tensor([-1.2816, -0.6745, 0, 0.6745, 1.2816]).sigmoid()
    # Three standard errors of the median of 40 000 draws: 0.005; t rounds up, by 0.001 at most.
    torch.testing.assert_close(tau.quantile(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])), expected, rtol=0, atol=0.006)


def test_conditions_stay_with_their_pictures_and_some_are_withheld():
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 2, 2)
    cond = torch.eye(8)  # row i says "I am picture i"
    run = config(batch_size=400, cond_dropout=0.25, flip=False)
    x0, _, _ = make_batch(images, 3, run)
    rows = make_cond(cond, 3, run)
    which = ((x0[:, 0, 0, 0] + 1) * 127.5).round().long()
    kept = rows.any(1)
    assert torch.equal(rows[kept], cond[which[kept]]) and rows[~kept].eq(0).all()
    assert 0.15 < 1 - kept.float().mean() < 0.35
    assert torch.equal(rows, make_cond(cond, 3, run)) and not torch.equal(rows, make_cond(cond, 4, run))
    parts = [make_cond(cond, 3, run, share=(i, 4)) for i in range(4)]
    assert torch.equal(torch.cat(parts), rows)


@pytest.mark.parametrize("share, kept", [(0.0, 1.0), (1.0, 0.0)])
def test_all_or_none_of_the_conditions_can_be_withheld(share, kept):
    rows = make_cond(torch.ones(5, 2), 0, config(batch_size=20, cond_dropout=share))
    assert torch.equal(rows, torch.full((20, 2), kept))


def test_a_conditional_network_draws_what_the_condition_says():
    """Two grey pictures, one dark and one light: given which, the network answers with it even where
    the noise has left nothing to see."""
    images = torch.tensor([30, 220], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    run = config(
        network={**TINY, "cond_dim": 2},
        steps=250,
        batch_size=16,
        log_every=250,
        learning_rate=1e-2,
        ema_decay=0.9,
        warmup_steps=10,
    )
    (record,) = train(run, images, cond=torch.eye(2))
    x_T, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([999, 999])
    with torch.no_grad():
        answer = record.denoiser(x_T, t, torch.eye(2))
    dark, light = to_float(images)[:, 0, 0, 0]
    assert (answer[0] - dark).abs().mean() < 0.15 and (answer[1] - light).abs().mean() < 0.15


@pytest.mark.parametrize(
    "cond_dim, cond", [(3, None), (None, torch.zeros(12, 3)), (3, torch.zeros(12, 2)), (3, torch.zeros(11, 3))]
)
def test_conditions_must_fit_network_and_pictures(cond_dim, cond):
    network = {**TINY, "cond_dim": cond_dim} if cond_dim else TINY
    with pytest.raises(ValueError, match="the network takes (no cond|cond of shape .12, 3.), not"):
        next(train(config(network=network), pictures(), cond=cond))


def test_flips_mirror_about_half_of_the_pictures_left_to_right():
    images = pictures(count=20)
    run = config(batch_size=400)
    straight = to_float(images[batch_indices(0, 400, 20, 0)])
    flipped = make_batch(images, 0, run)[0]
    unchanged = (flipped == straight).flatten(1).all(1)
    mirrored = (flipped == straight.flip(3)).flatten(1).all(1)
    assert (unchanged ^ mirrored).all()
    assert 150 < mirrored.sum() < 250
    assert torch.equal(make_batch(images, 0, config(batch_size=400, flip=False))[0], straight)


def test_a_shift_moves_every_picture_and_repeats_its_edge():
    images = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    moved = shifted(images, torch.tensor([[1, -2], [0, 0]]))
    by_hand = F.pad(images.float(), (2, 2, 2, 2), mode="replicate")[0, :, 1:5, 4:9]  # from one above, and two right
    assert torch.equal(moved[0].float(), by_hand) and torch.equal(moved[1], images[1])


def test_shifts_are_drawn_evenly_and_for_each_picture_alone():
    ramp = torch.arange(64, dtype=torch.uint8)
    images = (ramp[:8, None] * 8 + ramp[None, :8]).expand(1, 3, 8, 8)  # its middle tells where it is
    run = config(batch_size=2000, shift=2, flip=False)
    middle = ((make_batch(images, 0, run)[0][:, 0, 4, 4] + 1) * 127.5).round().long()
    rows, columns = 4 - middle // 8, 4 - middle % 8
    for moved in (rows, columns):
        assert sorted(moved.unique().tolist()) == [-2, -1, 0, 1, 2]
        assert torch.bincount(moved + 2).min() > 320
    assert abs(torch.corrcoef(torch.stack([rows, columns]).float())[0, 1]) < 0.1


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("share", [(0, 1), (1, 2)])
def test_the_batch_of_a_step_is_made_of_its_parts(conditional, share):
    run, images, cond = config(seed=2), pictures(), torch.eye(12)
    net = networks.build(**TINY, **({"cond_dim": 12} if conditional else {}))
    batch = Batches(images, cond if conditional else None, net, run, share)[7]
    for one, other in zip(batch, make_batch(images, 7, run, share)):
        assert torch.equal(one, other)
    assert torch.equal(batch.cond, make_cond(cond, 7, run, share)) if conditional else batch.cond is None


# ---------------------------------------------------------------- budget, rate, average


def test_progress_by_steps_images_and_minutes():
    assert config(steps=200).progress(50, seconds=999) == 0.25
    assert config(steps=None, images=400, batch_size=4).progress(25, 999) == 0.25
    assert config(steps=None, minutes=2).progress(10**9, seconds=30) == 0.25
    several = config(steps=100, images=1000, minutes=1, batch_size=4)
    assert several.progress(10, 6) == 0.1 and several.progress(10, 30) == 0.5
    assert several.progress(90, 6) == 0.9
    assert config(steps=10).progress(11, 0) == 1.0


def test_a_run_ends_with_the_first_budget_that_is_used():
    *_, record = train(config(steps=50, images=10, batch_size=4), pictures())
    assert record.step == 3 and record.images == 12
    *_, record = train(config(steps=None, minutes=0.005, log_every=10**6), pictures())
    assert 0.3 <= record.seconds < 10 and record.step > 1 and not record.stopped


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    run = config(steps=100, learning_rate=2e-3, warmup_steps=10, decay_fraction=0.4)
    curve = [run.learning_rate_at(step, run.progress(step, 0)) for step in range(101)]
    assert curve[:10] == pytest.approx([2e-3 * (i + 1) / 10 for i in range(10)])
    assert curve[10:61] == pytest.approx([2e-3] * 51)
    assert curve[60:] == pytest.approx([2e-3 * (100 - i) / 40 for i in range(60, 101)], abs=1e-9)
    assert curve[100] == 0
    flat = config(warmup_steps=0, decay_fraction=0.0, learning_rate=2e-3)
    assert {flat.learning_rate_at(step, p) for step in (0, 9) for p in (0, 1)} == {2e-3}


def test_the_optimizer_follows_the_curve(tmp_path):
    run = config(steps=10, warmup_steps=2, decay_fraction=0.5, checkpoint_every=1)
    rates = []
    for _ in train(run, pictures(), tmp_path):
        state = load_checkpoint(tmp_path / "checkpoint.pt")
        rates.append(state["optimizer"]["param_groups"][0]["lr"])
    share = [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert rates == pytest.approx([1e-3 * s for s in share])


def test_the_moving_average_warms_up():
    """d = min(decay, (1+n)/(10+n)) after n updates; torch itself copies the first time (n = 0)."""
    weight = torch.nn.Linear(1, 1, bias=False)
    average = AveragedModel(weight, multi_avg_fn=ema_update(0.6))
    expected = None
    for n in range(30):
        with torch.no_grad():
            weight.weight.fill_(float(n % 7))
        average.update_parameters(weight)
        d = min(0.6, (1 + n) / (10 + n))
        expected = float(n % 7) if n == 0 else d * expected + (1 - d) * (n % 7)
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_decay_of_the_average_reaches_the_training_loop():
    runs = (config(steps=12, log_every=12, ema_decay=decay) for decay in (0.0, 0.999))
    quick, slow = (next(train(run, pictures())) for run in runs)
    assert not torch.equal(weights(quick), weights(slow))


# ---------------------------------------------------------------- records


def test_records_come_when_due_and_at_the_end():
    records = list(train(config(steps=8, log_every=3), pictures()))
    assert [r.step for r in records] == [3, 6, 8]
    assert [r.images for r in records] == [12, 24, 32]
    every = [r.loss for r in train(config(steps=8), pictures())]
    for record, part in zip(records, (every[:3], every[3:6], every[6:])):
        assert record.loss == pytest.approx(sum(part) / len(part), rel=1e-5)
    assert all(r.images_per_second > 0 and r.grad_norm > 0 and not r.stopped for r in records)
    assert records[0].seconds < records[1].seconds < records[2].seconds


def test_a_record_goes_into_the_log_as_numbers(tmp_path):
    records = list(train(config(), pictures(), tmp_path))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record.to_json() for record in records]
    names = set(StepRecord.__dataclass_fields__) - {"denoiser", "stopped"}
    assert set(records[0].to_json()) == names


def test_the_callers_own_time_does_not_count():
    seconds, clock = [], []
    for record in train(config(steps=4), pictures()):
        seconds.append(record.seconds)
        clock.append(time.perf_counter())
        time.sleep(0.1)
    assert seconds[3] - seconds[0] < clock[3] - clock[0] - 0.25  # three naps lie in between


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    list(train(config(), pictures()))
    assert not list(tmp_path.iterdir())


def test_the_denoiser_can_be_sampled_while_training_goes_on():
    run = config()
    with_sampling, without = [], [r.loss for r in train(run, pictures())]
    for record in train(run, pictures()):
        drawn = sample(record.denoiser, range(2), (3, 8, 8), steps=3)
        assert drawn.shape == (2, 3, 8, 8) and drawn.isfinite().all()
        with_sampling.append(record.loss)
    assert with_sampling == without


def test_training_works_beside_the_main_thread():
    """As in a notebook's widget: no signal handlers there, and no complaint about it."""
    records = []
    thread = threading.Thread(target=lambda: records.extend(train(config(), pictures())))
    thread.start()
    thread.join()
    assert [r.step for r in records] == [1, 2, 3, 4, 5, 6]


def test_breaking_off_gives_the_signals_back():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    steps = train(config(), pictures())
    next(steps)
    during = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert during != before
    steps.close()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_precisions_can_follow_each_other_in_one_process():
    """accelerate remembers its first precision; a notebook trains with several."""
    runs = [
        list(train(config(mixed_precision=precision), pictures()))[-1]
        for precision in ("no", "bf16", "no", "auto", "bf16")
    ]
    full, half, full_again, auto, half_again = map(weights, runs)
    assert torch.equal(full, full_again) and torch.equal(half, half_again)
    assert not torch.equal(full, half)
    native = bf16_is_native(next(runs[0].denoiser.net.parameters()).device)
    assert torch.equal(auto, half if native else full)
    torch.testing.assert_close(half, full, atol=0.02, rtol=0.1)
    assert {p.dtype for p in runs[1].denoiser.net.parameters()} == {torch.float32}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "change, text",
    [
        ({"prediction_type": "x0"}, "prediction_type must be one of epsilon, sample, v_prediction, edm, flow_pred"),
        ({"schedule": "quadratic"}, "schedule must be one of linear, cosine, flow, not 'quadratic'"),
        ({"steps": 0}, "steps must be greater than 0, not 0"),
        ({"minutes": -1}, "minutes must be greater than 0, not -1"),
        ({"images": 0}, "images must be greater than 0"),
        ({"batch_size": 0}, "batch_size must be greater than 0"),
        ({"learning_rate": -1e-3}, "learning_rate must be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number, not nan"),
        ({"log_every": 0}, "log_every must be greater than 0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be greater than 0"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
        ({"decay_fraction": 1.5}, r"decay_fraction must lie in \[0, 1\]"),
        ({"cond_dropout": -0.1}, r"cond_dropout must lie in \[0, 1\]"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be one of auto, no, bf16, fp16, not 'fp8'"),
        ({"compile": "maybe"}, "compile must be one of auto, no, yes, not 'maybe'"),
        ({"timestep_sampling": "normal"}, "timestep_sampling must be one of uniform, lognormal, logitnormal, not"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, muon, not 'sgd'"),
        ({"min_snr_gamma": 0}, "min_snr_gamma must be greater than 0, not 0"),
        ({"snr_floor": 1.0}, "give min_snr_gamma, too"),
        ({"min_snr_gamma": 5.0, "snr_floor": 6.0}, "snr_floor must lie in .0, min_snr_gamma = 5.0., not 6.0"),
        ({"min_snr_gamma": 5.0, "snr_floor": -1.0}, "snr_floor must lie in .0, min_snr_gamma"),
        ({"min_snr_gamma": 5.0, "snr_floor": 1.0, "prediction_type": "epsilon"}, "floor/SNR, without limit"),
        ({"min_snr_gamma": 5.0, "objective": "consistency"}, "leave min_snr_gamma out"),
        ({"sigma_data": 0.0}, "sigma_data must be greater than 0, not 0.0"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number, not inf"),
        ({"weight_decay": float("nan")}, "weight_decay must be a finite number, not nan"),
        ({"steps": 2.5}, "steps must be a whole number, not 2.5"),
        ({"batch_size": "8"}, "batch_size must be a whole number, not '8'"),
        ({"flip": "no"}, "flip must be true or false, not 'no'"),
        ({"network": "resnet"}, "network must be a dict, not 'resnet'"),
        ({"network": {}}, 'network needs a name, such as {"name": "resnet"}, not {}'),
        ({"seed": -1}, r"seed must lie in \[0, 4294967295\], not -1"),
        ({"sigma_data": float("nan")}, "sigma_data must be a finite number, not nan"),
    ],
)
def test_a_bad_configuration_is_an_error(change, text):
    with pytest.raises(ValueError, match=text):
        config(**change)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"network": {"name": "vit"}}, "unknown network 'vit'"),
        ({"network": {**TINY, "width": 3}}, "network 'resnet' has no option 'width': choose one of"),
        ({"steps": None}, "say when to stop: give steps, images or minutes"),
        ({"network": None}, "say what to train"),
        ({"sigma_data": None}, "say what to train"),
        ({"prediction_type": "epsilon", "zero_terminal_snr": True}, "epsilon prediction cannot"),
        ({"prediction_type": "epsilon", "schedule": "flow"}, "epsilon prediction cannot .*leave schedule flow out"),
        ({"objective": "consistency", "schedule": "flow"}, "needs a little signal everywhere: leave schedule flow out"),
        ({"network": {**TINY, "channels": [8] * 4}}, "multiples of the network's stride, 16"),
        ({"network": {**TINY, "picture_channels": 4}}, "a picture of 3 channels cannot pass"),
    ],
)
def test_what_cannot_be_built_is_an_error_at_the_start(tmp_path, change, text):
    with pytest.raises(ValueError, match=text):
        list(train(config(**change), pictures(), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


NO_PICTURES = {  # what is no set of pictures, and what is said of it
    "0 to 255": (pictures().float(), "numbers from .* look like pictures, so give them as uint8"),
    "all 200": (torch.full((4, 3, 8, 8), 200.0), "numbers from 2e\\+02 to 2e\\+02 look like pictures"),
    "0 to 1": (torch.rand(10, 3, 16, 16), "numbers from .* to 1 look like pictures, so give them as uint8"),
    "-1 to 1": (to_float(pictures()), "numbers from -1 to 1 look like pictures, so give them as uint8"),
    "half precision": (torch.randn(10, 3, 8, 8).half(), "not torch.float16"),
    "not finite": (torch.full((2, 3, 8, 8), float("nan")), "numbers from nan to nan are no latents"),
    "one picture": (pictures()[0], r"with N ≥ 1, not Tensor \(3, 8, 8\)"),
    "none": (pictures()[:0], r"with N ≥ 1, not Tensor \(0, 3, 8, 8\)"),
    "a row": (torch.zeros(3, dtype=torch.uint8), r"not Tensor \(3,\)"),
    "numpy": (pictures().numpy(), r"not ndarray \(12, 3, 8, 8\)"),
    "a list": ([pictures()], "not list$"),
}


@pytest.mark.parametrize("images, text", NO_PICTURES.values(), ids=NO_PICTURES)
def test_bad_pictures_are_an_error(images, text):
    with pytest.raises(ValueError, match=r"must be a uint8 tensor \(N, 3, H, W\), 0 … 255, or latents of v.*" + text):
        next(train(config(), images))


def test_latents_are_floats_of_variance_1():
    latents = torch.randn(12, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert next(train(config(network={**TINY, "picture_channels": 4}), latents)).loss > 0


def test_numbers_that_explode_end_the_run_with_advice():
    run = config(steps=50, learning_rate=1e37, clip_grad_norm=1e9)
    with pytest.raises(FloatingPointError, match="lower learning_rate or set mixed_precision"):
        list(train(run, pictures()))


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_loss_that_is_not_finite_spares_the_good_checkpoint(tmp_path, monkeypatch, log_every):
    calls, loss = [], Denoiser.loss

    def breaks(*args):
        calls.append(1)
        return loss(*args) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(Denoiser, "loss", breaks)
    with pytest.raises(FloatingPointError, match="the loss is nan after 4 steps"):
        list(train(config(checkpoint_every=1, log_every=log_every), pictures(), tmp_path))
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["step"] == 3
    assert all(value.isfinite().all() for value in state["net"].values())


WEIGHTS_BREAK = {  # how a step of AdamW with a finite loss leaves them
    "too large for half precision": ({"learning_rate": 1e6}, "the largest weight is 1e[+]06 after 1 steps"),
    "infinite": ({"learning_rate": 3e38, "weight_decay": 1e3}, "the largest weight is (inf|nan) after 1 steps"),
}


@pytest.mark.parametrize("options, text", WEIGHTS_BREAK.values(), ids=WEIGHTS_BREAK)
def test_weights_that_cannot_be_stored_are_not(tmp_path, options, text):
    run = config(steps=1, warmup_steps=0, decay_fraction=0.0, **options)
    with pytest.raises(FloatingPointError, match=f"{text}: lower learning_rate"):
        list(train(run, pictures(), tmp_path))
    assert not (tmp_path / "checkpoint.pt").exists() and (tmp_path / "log.jsonl").read_text() == ""


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_spares_the_good_checkpoint(tmp_path, monkeypatch, broken):
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def breaks(*args, **options):  # as if the numbers had grown too large for the norm, not yet for the weights
        calls.append(1)
        return clip(*args, **options) * (broken if len(calls) == 4 else 1)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", breaks)
    with pytest.raises(FloatingPointError, match=f"the length of the gradient is {broken} after 4 steps"):
        list(train(config(checkpoint_every=1), pictures(), tmp_path))
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3


def test_training_needs_its_configuration_and_gradients():
    with pytest.raises(ValueError, match="takes a TrainConfig, and gradients"):
        next(train({"steps": 1}, pictures()))
    with torch.no_grad(), pytest.raises(ValueError, match=r"call it outside of torch.no_grad"):
        next(train(config(), pictures()))


def test_conditions_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="cond holds numbers that are not finite"):
        next(train(config(network={**TINY, "cond_dim": 2}), pictures(), cond=torch.full((12, 2), float("nan"))))
