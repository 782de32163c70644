"""Half precision with a scaled loss, and compiling: on a CPU, which has float16 as well, against float32."""

import warnings
from functools import partial

import pytest
import torch
from test_devices import NETWORKS
from test_training import TINY, config, pictures, weights
from torch._dynamo.backends.debugging import aot_eager

from diffusion_utils import networks
from diffusion_utils.prediction import Denoiser
from diffusion_utils.training import TrainConfig, arithmetic, load_checkpoint, read_log, train
from diffusion_utils.training.arithmetic import (
    COMPILE_IMAGES,
    COMPILE_MINUTES,
    Network,
    choose_compile,
    choose_precision,
)
from diffusion_utils.training.batches import Batch, make_batch
from diffusion_utils.training.loop import make_objective

CPU, T4, P100, A100 = torch.device("cpu"), (7, 5), (6, 0), (8, 0)
SCALER, COMPILE = torch.amp.GradScaler, torch.compile


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(
    "asked, native, capability, chosen",
    [
        ("auto", True, A100, "bf16"),
        ("auto", True, None, "bf16"),  # a CPU that has it
        ("auto", False, T4, "fp16"),
        ("auto", False, (7, 0), "fp16"),
        ("auto", False, P100, "no"),
        ("auto", False, None, "no"),
        ("fp16", True, A100, "fp16"),
        ("fp16", False, None, "fp16"),
        ("bf16", False, P100, "bf16"),
        ("no", True, A100, "no"),
    ],
)
def test_the_precision_is_what_is_asked_for_or_what_the_device_is_good_at(asked, native, capability, chosen):
    assert choose_precision(asked, native, capability) == chosen


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_float16_answer_and_learn_nearly_as_in_float32(name):
    torch.manual_seed(0)
    net = networks.build(**NETWORKS[name])
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # heads start at zero
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 80])
    inputs = [x, t]
    if net.cond_shape:
        inputs.append(torch.ones(2, *net.cond_shape, dtype=torch.int64 if name.startswith("text") else None))
    answers, gradients = [], []
    for precision in ("no", "fp16"):
        answers.append(Network(net, CPU, precision)(*inputs))
        found = torch.autograd.grad(answers[-1].square().mean(), [*net.parameters()], materialize_grads=True)
        gradients.append(torch.cat([g.flatten() for g in found]))
    assert answers[1].dtype == torch.float32 and not torch.equal(*answers)
    for one, other in (answers, gradients):
        assert (one - other).norm() < 0.02 * one.norm()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_float16_with_a_scaled_loss_trains_as_float32_does(optimizer):
    """So small a limit that every gradient is shortened: to the same length, so it is no longer scaled then."""
    runs = [
        list(train(config(steps=30, optimizer=optimizer, clip_grad_norm=0.01, mixed_precision=precision), pictures()))
        for precision in ("no", "fp16")
    ]
    for full, half in zip(*runs):
        assert half.loss == pytest.approx(full.loss, rel=2e-3) and half.skipped_steps == full.skipped_steps == 0
        assert half.grad_norm == pytest.approx(full.grad_norm, rel=0.03) and half.grad_norm > 0.01
    full, half = (weights(records[-1]) for records in runs)
    untrained = weights(next(train(config(steps=1, learning_rate=1e-12), pictures())))
    assert 0 < (full - half).norm() < 0.1 * (full - untrained).norm()
    assert {p.dtype for p in runs[1][-1].denoiser.net.parameters()} == {torch.float32}


@pytest.fixture
def large_scale(monkeypatch):
    """Scales that begin so large that gradients overflow, and are doubled again after every third good step."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(SCALER, init_scale=2.0**22, growth_interval=3))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_that_overflows_is_skipped_and_counted(tmp_path, large_scale, optimizer):
    run = config(steps=20, checkpoint_every=1, optimizer=optimizer, mixed_precision="fp16")
    torch.manual_seed(0)
    net, skipped = networks.build(**TINY).to(memory_format=torch.channels_last), 0  # as the run begins
    objective = make_objective(run, Denoiser(Network(net, CPU, "fp16"), run.make_schedule(), "sample"))
    for record in train(run, pictures(), tmp_path):
        # Each step sees the batch of its number, whatever was skipped.
        assert record.loss == objective(Batch(*make_batch(pictures(), record.step - 1, run)), 0.0).item()
        state = load_checkpoint(tmp_path / "checkpoint.pt")
        stayed = all(torch.equal(value, state["net"][name]) for name, value in net.state_dict().items())
        assert stayed == (record.skipped_steps > skipped) == (record.grad_norm == 0)
        skipped = record.skipped_steps
        assert state["ema"]["n_averaged"] == record.step - skipped  # the average is of the weights that were learnt
        net.load_state_dict(state["net"])
    assert 2 <= skipped <= 16
    assert [r["skipped_steps"] for r in read_log(tmp_path / "log.jsonl")][-1] == state["skipped_steps"] == skipped


def test_gradients_that_overflow_however_they_are_scaled_end_the_run(monkeypatch):
    monkeypatch.setattr(torch.amp, "GradScaler", partial(SCALER, init_scale=1e-7))
    with pytest.raises(FloatingPointError, match="overflow in float16, however they are scaled, after 1 steps: lower"):
        list(train(config(mixed_precision="fp16"), pictures()))


# ---------------------------------------------------------------- compiling

LONG = {"steps": None, "minutes": COMPILE_MINUTES}


@pytest.mark.parametrize(
    "options, capability, progress, chosen",
    [
        (LONG, T4, 0.0, True),
        (LONG, (7, 0), 0.0, True),
        (LONG, P100, 0.0, False),
        (LONG, None, 0.0, False),
        (LONG, T4, 0.1, False),  # of a resumed run the rest counts
        ({"steps": None, "minutes": 2 * COMPILE_MINUTES}, T4, 0.5, True),
        ({"steps": None, "minutes": COMPILE_MINUTES - 1}, T4, 0.0, False),
        ({"steps": None, "images": COMPILE_IMAGES}, T4, 0.0, True),
        ({"steps": None, "images": COMPILE_IMAGES - 1}, T4, 0.0, False),
        ({"steps": COMPILE_IMAGES // 4, "batch_size": 4}, T4, 0.0, True),
        ({"steps": COMPILE_IMAGES // 4, "batch_size": 3}, T4, 0.0, False),
        ({**LONG, "images": 10}, T4, 0.0, False),  # the first limit that is reached ends the run
        ({"steps": 1, "compile": "yes"}, None, 0.0, True),
        ({**LONG, "compile": "no"}, A100, 0.0, False),
    ],
)
def test_auto_compiles_on_cards_that_can_where_the_budget_earns_it(options, capability, progress, chosen):
    run = config(**{"compile": "auto", **options})
    assert choose_compile(run, capability, progress) == chosen


def test_networks_of_one_form_are_compiled_once(monkeypatch):
    graphs = []

    def counting(graph, inputs, **options):
        graphs.append(graph)
        return aot_eager(graph, inputs, **options)

    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend=counting))
    eager, *compiled = (weights(list(train(config(compile=c, steps=3), pictures()))[-1]) for c in ("no", "yes", "yes"))
    assert len(graphs) == 1
    torch.testing.assert_close(compiled[0], eager)
    assert torch.equal(*compiled)
    other = {**TINY, "embedding_dim": 16}
    list(train(config(network=other, compile="yes", steps=1), pictures()))
    assert len(graphs) == 2


def fails(*args, **options):
    raise RuntimeError("no compiler found\nand a long story")


class Fails(torch.nn.Module):
    forward = fails


@pytest.mark.parametrize("when", ["at once", "in the first pass"])
def test_what_cannot_be_compiled_runs_without(monkeypatch, when):
    eager = weights(list(train(config(), pictures()))[-1])
    monkeypatch.setattr(torch, "compile", fails if when == "at once" else lambda net, **_: Fails())
    monkeypatch.setattr(arithmetic, "choose_compile", lambda *_: True)
    with pytest.warns(
        UserWarning, match=r"^torch.compile fails here \(no compiler found\): the run goes on without it$"
    ):
        *_, record = train(config(compile="auto"), pictures())
    assert torch.equal(weights(record), eager)
    with pytest.raises(ValueError, match=r"cannot be compiled here \(no compiler found\): leave compile out"):
        next(train(config(compile="yes"), pictures()))


def test_a_short_run_on_a_cpu_is_not_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", fails)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(train(TrainConfig(TINY, steps=1, batch_size=4), pictures()))
