"""A run that was stopped, killed or shared equals one that was not; one of an earlier version goes on."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from diffusion_utils import networks, pretrained
from diffusion_utils.commands import main
from diffusion_utils.data import sets, toy_cars
from diffusion_utils.data.order import _epoch_order
from diffusion_utils.training import TrainConfig, arithmetic, load_checkpoint, read_log, stop_on_signal, train
from diffusion_utils.training.checkpoints import only_run

ROOT = Path(__file__).parent.parent
TINY = {"name": "resnet", "channels": [8, 8], "stem": 2, "embedding_dim": 8}


def config(**changes):
    options = {
        "network": TINY,
        "steps": 12,
        "batch_size": 4,
        "warmup_steps": 3,
        "log_every": 1,
        "checkpoint_every": 5,
        "mixed_precision": "no",
        "compile": "no",
    }
    return TrainConfig(**{**options, **changes})


def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=generator)


def run(folder, until=None, resume=False, **changes):
    """Train; `until`: walk away after that step, as a notebook does that is interrupted."""
    steps = train(config(**changes), pictures(), folder, resume)
    for record in steps:
        if record.step == until:
            steps.close()
    return record


def differences(a, b, where=""):
    """Where two checkpoints differ, bit for bit; clocks aside."""
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where}: keys"]
        return [d for k in a for d in differences(a[k], b[k], f"{where}/{k}") if k != "seconds"]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where}: length"]
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{where}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [where]


def assert_equal_runs(one, two):
    states = [load_checkpoint(folder / "checkpoint.pt") for folder in (one, two)]
    assert differences(*states) == []
    logs = [
        [{k: v for k, v in r.items() if "second" not in k} for r in read_log(folder / "log.jsonl")]
        for folder in (one, two)
    ]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of 12 steps that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("until", [3, 5, 7, 10, 11])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, whole, until):
    run(tmp_path, until=until)
    torch.manual_seed(99)  # another process stands elsewhere
    _epoch_order.cache_clear()
    record = run(tmp_path, resume=True)
    assert record.step == 12 and record.images == 48
    assert_equal_runs(tmp_path, whole)


@pytest.mark.parametrize("until", [5, 7])
def test_a_resumed_run_with_muon_equals_an_uninterrupted_one(tmp_path, until):
    options = {"optimizer": "muon", "timestep_sampling": "lognormal", "prediction_type": "edm"}
    run(tmp_path / "whole", **options)
    run(tmp_path / "parts", until=until, **options)
    torch.manual_seed(99)
    run(tmp_path / "parts", resume=True, **options)
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_in_float16_equals_an_uninterrupted_one(tmp_path, monkeypatch, optimizer):
    """With a scale of the loss that begins too high and is doubled after every third good step."""
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**22, growth_interval=3)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    options = {"optimizer": optimizer, "mixed_precision": "fp16", "checkpoint_every": 1, "steps": 20}
    run(tmp_path / "whole", **options)
    for until in (2, 11, None):
        last = run(tmp_path / "parts", until=until, resume=True, **options)
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")
    state = load_checkpoint(tmp_path / "parts" / "checkpoint.pt")
    assert 3 <= last.skipped_steps == state["skipped_steps"] < 15 and state["scaler"]["scale"] != 2.0**22


@pytest.mark.parametrize("then, now", [("no", "fp16"), ("fp16", "no")])
def test_a_run_goes_on_where_auto_means_another_precision(tmp_path, monkeypatch, then, now):
    monkeypatch.setattr(arithmetic, "precision_on", lambda *_: then)
    run(tmp_path, until=5, mixed_precision="auto")
    monkeypatch.setattr(arithmetic, "precision_on", lambda *_: now)
    assert run(tmp_path, resume=True, mixed_precision="auto").step == 12


def test_a_checkpoint_knows_when_runs_differ(tmp_path, whole):
    """So that the comparison above says something."""
    run(tmp_path, seed=1)
    states = [load_checkpoint(folder / "checkpoint.pt") for folder in (tmp_path, whole)]
    assert {d.split("/")[1] for d in differences(*states)} >= {"config", "net", "ema", "optimizer"}


def test_resuming_several_times_equals_too(tmp_path, whole):
    for until in (2, 5, 6, 9, None):
        run(tmp_path, until=until, resume=True, checkpoint_every=1)
    record = list(read_log(tmp_path / "log.jsonl"))
    assert [r["step"] for r in record] == list(range(1, 13))
    run(tmp_path / "again", checkpoint_every=1)
    assert_equal_runs(tmp_path, tmp_path / "again")


def test_resume_without_a_checkpoint_starts_the_run(tmp_path, whole):
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


@pytest.mark.parametrize("run_dir, resume", [("", False), ("", True), (None, True)])
def test_a_folder_that_is_missing_is_not_left_out_without_a_word(run_dir, resume):
    with pytest.raises(ValueError, match="run_dir is missing: give the folder of the run"):
        next(train(config(), pictures(), run_dir, resume))


def test_the_clock_goes_on(tmp_path):
    run(tmp_path, until=5)
    first = load_checkpoint(tmp_path / "checkpoint.pt")["seconds"]
    steps = train(config(), pictures(), tmp_path, resume=True)
    assert next(steps).seconds > first > 0
    steps.close()


def test_a_finished_run_hands_out_what_it_learnt_and_goes_on_when_the_budget_grows(tmp_path):
    last = run(tmp_path)
    (again,) = train(config(), pictures(), tmp_path, resume=True)
    assert (again.step, again.images, again.loss) == (last.step, last.images, last.loss)
    before, after = (record.denoiser.net.state_dict() for record in (last, again))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == list(range(1, 13))
    assert run(tmp_path, resume=True, steps=15, log_every=2).step == 15


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    run(tmp_path, until=5)
    before = [(tmp_path / name).read_bytes() for name in ("checkpoint.pt", "log.jsonl")]
    with pytest.raises(FileExistsError, match=r"already holds a run: resume it \(--resume\) or"):
        run(tmp_path)
    assert before == [(tmp_path / name).read_bytes() for name in ("checkpoint.pt", "log.jsonl")]


@pytest.mark.parametrize(
    "change, named",
    [
        ({"learning_rate": 2e-3}, "learning_rate"),
        ({"network": {**TINY, "embedding_dim": 16}}, "network"),
        ({"seed": 1, "flip": False}, "seed, flip|flip, seed"),
        ({"prediction_type": "epsilon"}, "prediction_type"),
        ({"batch_size": 8}, "batch_size"),
        ({"optimizer": "muon"}, "optimizer"),
        ({"timestep_sampling": "lognormal"}, "timestep_sampling"),
        ({"sigma_data": 0.6}, "sigma_data"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, whole, change, named):
    (tmp_path / "checkpoint.pt").write_bytes((whole / "checkpoint.pt").read_bytes())
    with pytest.raises(ValueError, match=rf"trained with other settings \(({named})\): go on"):
        run(tmp_path, resume=True, steps=20, **change)


def test_a_run_from_before_there_were_these_options_goes_on(tmp_path, whole):
    state = load_checkpoint(whole / "checkpoint.pt")
    for name in ("optimizer", "timestep_sampling", "sigma_data"):
        del state["config"][name]
    for name in ("scaler", "skipped_steps"):
        del state[name]
    torch.save(state, tmp_path / "checkpoint.pt")
    assert run(tmp_path, resume=True, steps=14).step == 14


# ---------------------------------------------------------------- runs of an earlier version

OLD = Path(__file__).parent / "data" / "run-118433b"  # a training of 6 steps by the code of commit 118433b


# ---------------------------------------------------------------- branching off


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_branch_takes_over_weights_average_and_optimizer(tmp_path, optimizer):
    run(tmp_path / "trunk", optimizer=optimizer)
    before = load_checkpoint(tmp_path / "trunk" / "checkpoint.pt")
    other = {"optimizer": optimizer, "batch_size": 8, "seed": 1, "ema_decay": 0.5, "steps": 1, "warmup_steps": 0}
    still = config(**other, learning_rate=1e-30)
    (record,) = train(still, pictures(), tmp_path / "branch", branch=tmp_path / "trunk")
    assert (record.step, record.images) == (1, 8)
    after = load_checkpoint(tmp_path / "branch" / "checkpoint.pt")
    assert differences(before["net"], after["net"]) == []
    assert after["ema"]["n_averaged"] == before["ema"]["n_averaged"] + 1
    net = networks.build(**TINY)  # what the same step makes of the weights alone, without their optimizer
    net.load_state_dict(before["net"])
    list(train(still, pictures(), tmp_path / "fresh", start=net))
    fresh = load_checkpoint(tmp_path / "fresh" / "checkpoint.pt")
    then, now, new = (state["optimizer"]["state"] for state in (before, after, fresh))
    decay = {"exp_avg": 0.9, "exp_avg_sq": 0.99, "momentum_buffer": 0.95}  # of the means that an optimizer keeps
    shared = [(key, name) for key in then for name in decay if name in then[key]]
    assert shared
    for key, name in shared:
        torch.testing.assert_close(now[key][name], decay[name] * then[key][name] + new[key][name])
    assert all(now[key]["step"] == then[key]["step"] + 1 for key in then if "step" in then[key])
    decaying = replace(still, weight_decay=0.5)
    list(train(decaying, pictures(), tmp_path / "decaying", branch=tmp_path / "trunk"))
    groups = load_checkpoint(tmp_path / "decaying" / "checkpoint.pt")["optimizer"]["param_groups"]
    assert before["optimizer"]["param_groups"][0]["weight_decay"] != 0.5
    assert all(group["weight_decay"] == 0.5 for group in groups)
    again = list(train(replace(still, steps=3), pictures(), tmp_path / "branch", True, branch="nowhere"))
    assert again[-1].step == 3  # resumed, it goes on from its own checkpoint


@pytest.mark.parametrize(
    "change, named", [({"optimizer": "muon"}, "optimizer"), ({"prediction_type": "epsilon"}, "prediction_type")]
)
def test_a_branch_keeps_what_network_and_optimizer_are(tmp_path, whole, change, named):
    with pytest.raises(ValueError, match=rf"trained with other settings \({named}\): go on"):
        next(train(config(**change), pictures(), tmp_path / "branch", branch=whole))
    assert not (tmp_path / "branch").exists()


def test_start_and_branch_together_are_refused(whole):
    with pytest.raises(ValueError, match="give one of them"):
        next(train(config(), pictures(), start=networks.build(**TINY), branch=whole))


def test_on_the_command_line_a_branch_is_as_its_trunk_but_for_what_is_said(old_run, tmp_path, capsys):
    trunk = json.loads((old_run / "run.json").read_text())
    branch = ("train", "--branch", str(old_run), "--out", str(tmp_path / "branch"))
    assert main([*branch, "--steps", "3", "--batch-size", "7", "--shift", "1"]) == 0
    card = pretrained.card(tmp_path / "branch" / "weights.safetensors")
    done = load_checkpoint(old_run / "checkpoint.pt")
    seen = done["step"] * trunk["config"]["batch_size"]
    assert card["start"]["name"] == "run" and card["start"]["branch"] and card["start"]["images_seen"] == seen
    assert (card["images_seen"], card["steps"]) == (seen + 21, done["step"] + 3)
    own = {"steps": 3, "images": None, "minutes": None, "batch_size": 7, "shift": 1, "warmup_steps": 0}
    own["seed"] = trunk["config"]["seed"] + 1
    differing = {name for name, value in trunk["config"].items() if card["config"][name] != value}
    assert differing <= set(own) and {name: card["config"][name] for name in own} == own
    assert main(["train", "--resume", "--out", str(tmp_path / "branch"), "--steps", "4"]) == 0
    capsys.readouterr()
    for option, text in ((("--size", "8"), "a branch keeps size"), (("--optimizer", "muon"), "a branch keeps optim")):
        assert main([*branch[:-1], str(tmp_path / "other"), "--steps", "3", *option]) == 1
        assert text in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """A copy of that run, with forty toy cars in place of the thousands."""
    cars = toy_cars.load(40, 16).images
    pictures = sets.PictureSet("toy_cars", cars[:32], cars[32:], "forty toy cars")
    monkeypatch.setattr(sets, "load", lambda *_: pictures)
    return shutil.copytree(OLD, tmp_path / "run")


def go_on(folder, *arguments):
    return main(["train", "--resume", "--out", str(folder), *arguments])


def test_a_run_of_an_earlier_version_goes_on_with_its_settings(old_run):
    assert go_on(old_run, "--steps", "10", "--learning-rate", "0.002", "--size", "16") == 0  # as stored
    old, new = (load_checkpoint(folder / "checkpoint.pt") for folder in (OLD, old_run))
    assert (old["step"], new["step"]) == (6, 10) and new["seconds"] > old["seconds"]
    logs = [read_log(folder / "log.jsonl") for folder in (OLD, old_run)]
    assert [record["step"] for record in logs[1]] == [2, 4, 6, 8, 10] and logs[1][:3] == logs[0]
    assert new["config"].items() >= {**old["config"], "steps": 10}.items()
    for part in ("net", "ema"):
        assert new[part].keys() == old[part].keys()
        assert all(not torch.equal(value, old[part][name]) for name, value in new[part].items())
    before, after = (json.loads((folder / "run.json").read_text()) for folder in (OLD, old_run))
    assert not before.pop("before") and not after.pop("before")
    assert after["config"].items() >= {**before.pop("config"), "steps": 10}.items()
    assert after.items() >= before.items()
    card = pretrained.card(old_run / "weights.safetensors")
    assert (card["steps"], card["images_seen"], card["seed"], card["sigma_data"]) == (10, 80, 3, 0.472)
    assert card["network"] == old["config"]["network"] and card["data"] == "forty toy cars"


@pytest.mark.parametrize(
    "flag, value, name, stored",
    [
        ("--data", "stanford_cars", "data", "'toy_cars'"),
        ("--size", "32", "size", "16"),
        ("--condition", "caption", "condition", "None"),
        ("--network", '{"name": "resnet"}', "network", "{'name': 'resnet', 'channels': [4], "),
        ("--prediction-type", "v_prediction", "prediction_type", "'edm'"),
        ("--sigma-data", "0.5", "sigma_data", "0.472"),
        ("--learning-rate", "0.001", "learning_rate", "0.002"),
        ("--batch-size", "16", "batch_size", "8"),
        ("--seed", "0", "seed", "3"),
        ("--optimizer", "muon", "optimizer", "'adamw'"),
    ],
)
def test_a_flag_that_differs_from_the_stored_run_is_refused(old_run, capsys, flag, value, name, stored):
    before = {path.name: path.read_bytes() for path in old_run.iterdir()}
    assert go_on(old_run, "--steps", "10", flag, value) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {old_run} was begun with {name} {stored}") and said.count("\n") == 1
    assert f" and cannot go on with {value}" in said.replace("'", "").replace('"', "") or name == "network"
    assert said.endswith(f": leave {flag} out, or choose another folder\n")
    assert {path.name: path.read_bytes() for path in old_run.iterdir()} == before


# ---------------------------------------------------------------- damage


def flip_a_bit(path):
    """In the middle of the numbers, where torch.load would not notice."""
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


def other_version(path, **config):
    state = torch.load(path, weights_only=True)
    torch.save({**state, "config": state["config"] | config}, path)


DAMAGED = "is damaged, or not a checkpoint at all: put a whole copy there, or"
FOREIGN = "is not a checkpoint of diffusion_utils"
UNFIT = {  # what is wrong with a checkpoint, and what is said of it
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-200]), DAMAGED),
    "half": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), DAMAGED),
    "a bit": (flip_a_bit, DAMAGED),
    "empty": (lambda path: path.write_bytes(b""), DAMAGED),
    "foreign": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" * 100), DAMAGED),
    "a zip": (lambda path: ZipFile(path, "w").writestr("readme.txt", "hello"), FOREIGN),
    "other keys": (lambda path: torch.save({"model": {}}, path), f"{FOREIGN}, it lacks config, cuda_rng, ema, net"),
    "a tensor": (lambda path: torch.save(torch.zeros(3), path), f"{FOREIGN}, it lacks"),
    "a whole object": (lambda path: torch.save({"net": torch.nn.Linear(1, 1)}, path), rf"{FOREIGN} \(Weights only"),
    "new option": (
        lambda path: other_version(path, width=3),
        "is a checkpoint of another version of diffusion_utils: .*'width'",
    ),
    "new choice": (
        lambda path: other_version(path, optimizer="soap"),
        "is a checkpoint of another version of diffusion_utils: optim",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
}


@pytest.mark.parametrize("change, text", UNFIT.values(), ids=UNFIT)
def test_a_checkpoint_that_cannot_be_used_is_an_error_that_says_why(tmp_path, whole, change, text):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes((whole / "checkpoint.pt").read_bytes())
    change(path)
    with pytest.raises((ValueError, OSError), match=f"^{path} {text}") as raised:
        run(tmp_path, resume=True)
    assert "delete" not in str(raised.value) and "\n" not in str(raised.value) and path.exists()


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(whole, tmp_path, as_nobody):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes((whole / "checkpoint.pt").read_bytes())
    path.chmod(0)
    said = as_nobody(lambda: load_checkpoint(path))
    assert said == f"PermissionError: {path} cannot be read: Permission denied"


LOGS = {
    "a list": b"[]\n",
    "another record": b'{"loss": 1}\n',
    "words": b"epoch 1 of 3\nepoch 2 of 3\n",
    "the last words": b'{"step": 1, "loss": 2}\nepoch 2',
    "not the last line": b'{"step": 1, "lo\n{"step": 2, "loss": 2}\n',
    "binary": b"\x80\x81\x00\xff" * 9,
}


@pytest.mark.parametrize("contents", LOGS.values(), ids=LOGS)
def test_a_foreign_log_is_an_error_and_stays(tmp_path, contents):
    path = tmp_path / "log.jsonl"
    path.write_bytes(contents)
    for resume in (False, True):
        with pytest.raises(ValueError, match=f"^line [12] of {path} is no record of a run: move that file away, or"):
            run(tmp_path, resume=resume)
    assert path.read_bytes() == contents and not (tmp_path / "checkpoint.pt").exists()


def test_a_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="checkpoint.pt does not exist: start the run"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_half_written_line_and_lost_steps_leave_the_log(tmp_path, whole):
    run(tmp_path, until=7)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 8, "images": 32, "lo')
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == list(range(1, 8))
    steps = train(config(), pictures(), tmp_path, resume=True)
    assert next(steps).step == 6  # goes on from the checkpoint at 5, and drops 6 and 7
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == list(range(1, 7))
    steps.close()
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


def test_leftovers_of_a_killed_write_do_no_harm(tmp_path, whole):
    run(tmp_path, until=5)
    (tmp_path / ".checkpoint.pt.a1b2c3.part").write_bytes(b"half a checkp")
    (tmp_path / ".log.jsonl.a1b2c3.part").write_text('{"step": 99')
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


def test_a_lost_log_does_not_stop_the_run(tmp_path):
    run(tmp_path, until=5)
    (tmp_path / "log.jsonl").unlink()
    assert run(tmp_path, resume=True).step == 12
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == list(range(6, 13))


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, whole, monkeypatch):
    write, calls = Path.write_bytes, []

    def fails(path, contents):
        calls.append(path)
        if len(calls) == 2:
            write(path, bytes(contents)[:99])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, contents)

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "checkpoint.pt", "log.jsonl"]
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_cleanly(tmp_path, whole, number):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    records = []
    for record in train(config(), pictures(), tmp_path):
        records.append(record)
        if record.step == 6:
            os.kill(os.getpid(), number)
    assert [r.step for r in records] == list(range(1, 8))  # the step under way is finished
    assert [r.stopped for r in records] == [False] * 6 + [True]
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 7
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert not run(tmp_path, resume=True).stopped
    assert_equal_runs(tmp_path, whole)


def test_a_signal_in_the_last_step_is_no_stop(tmp_path):
    for record in train(config(), pictures(), tmp_path):
        if record.step == 11:
            os.kill(os.getpid(), signal.SIGTERM)
    assert record.step == 12 and not record.stopped


def test_a_second_ctrl_c_interrupts_at_once():
    # A shell that starts pytest in the background makes it deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), stop_on_signal() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("still running")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_come_back_after_an_error():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError), stop_on_signal() as asked:
        assert not asked()
        raise RuntimeError
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


# ---------------------------------------------------------------- kill -9

# One process imports torch, once, and forks the runs; it never computes itself, since torch does
# not survive a fork after its first backward pass.
KILL = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
import torch._dynamo  # torch's optimizers want it, and it takes seconds: once, not in every fork
from diffusion_utils.training import TrainConfig, load_checkpoint, train

torch.set_num_threads(1)
folder, chance = Path(sys.argv[1]), random.Random(7)
config = TrainConfig(**json.loads(sys.argv[2]))
images = torch.load(folder / "pictures.pt")

def start(run):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            list(train(config, images, run, resume=True))
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child

def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def written(run):  # a rename gives the file another inode and time
    try:
        stat = os.stat(run / "checkpoint.pt")
        return stat.st_ino, stat.st_mtime_ns
    except FileNotFoundError:
        return None

assert wait(start(folder / "whole")) == 0
report = {"from": [], "ended": []}
run = folder / "killed"
for saves in (0, 1, 2, 0, 1, 3, 1, 2):
    old = written(run)
    report["from"].append(load_checkpoint(run / "checkpoint.pt")["step"] if old else 0)
    child = start(run)
    # Strike while starting up, or shortly after a checkpoint, or in the middle of the next one.
    deadline = time.monotonic() + 20
    for _ in range(saves):
        while written(run) == old and time.monotonic() < deadline:
            time.sleep(0.0005)
        old = written(run)
    time.sleep(chance.uniform(0, 0.03 if saves else 0.2))
    os.kill(child, signal.SIGKILL)
    report["ended"].append(wait(child))
assert wait(start(run)) == 0
print(json.dumps(report))
"""


def python(*arguments, **environment):
    """A Python process with one thread that finds this package, and its output."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_again_and_again_it_ends_with_the_same_weights(tmp_path):
    options = {
        "network": TINY,
        "steps": 60,
        "batch_size": 4,
        "warmup_steps": 3,
        "log_every": 1,
        "checkpoint_every": 2,
        "mixed_precision": "no",
        "compile": "no",
    }
    torch.save(pictures(), tmp_path / "pictures.pt")
    done = python("-c", KILL, tmp_path, json.dumps(options), ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ended"].count(-signal.SIGKILL) >= 5, report  # or there was nothing to survive
    assert len({step for step in report["from"] if 0 < step < 60}) >= 3, report
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


# ---------------------------------------------------------------- two processes

SHARED = """
import json, os, sys
import torch
import torch._dynamo
from accelerate import PartialState
from diffusion_utils.training import TrainConfig, train

# What torchrun does, without the seconds for importing torch twice more.
children = []
for rank in range(2):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    child = os.fork()
    if child == 0:
        break
    children.append(child)
else:
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))

torch.set_num_threads(1)
folder, options = sys.argv[1], json.loads(sys.argv[2])
images = torch.load(folder + "/pictures.pt")
for record in train(TrainConfig(**options), images, folder + "/two"):
    break  # half-way, after a checkpoint
PartialState().wait_for_everyone()  # until it is written
for record in train(TrainConfig(**options), images, folder + "/two", resume=True):
    pass
try:
    next(train(TrainConfig(**{**options, "batch_size": 5}), images))
except ValueError as error:
    message = str(error)
state = PartialState()
with open(f"{folder}/report{state.process_index}.json", "w") as file:
    json.dump({"processes": state.num_processes, "message": message, "loss": record.loss}, file)
"""


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("optimizer, precision", [("adamw", "no"), ("muon", "no"), ("muon", "fp16")])
def test_two_processes_that_are_resumed_train_the_same_network_as_one(tmp_path, optimizer, precision):
    """Started as by torchrun: `accelerate launch --cpu` starts one process, whatever is asked."""
    options = {
        "network": TINY,
        "steps": 8,
        "batch_size": 6,
        "warmup_steps": 2,
        "log_every": 4,
        "checkpoint_every": 4,
        "mixed_precision": precision,
        "compile": "no",
        "optimizer": optimizer,
    }
    torch.save(pictures(), tmp_path / "pictures.pt")
    done = python(
        "-c",
        SHARED,
        tmp_path,
        json.dumps(options),
        ACCELERATE_USE_CPU="true",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / f"report{i}.json").read_text()) for i in range(2)]
    assert [r["processes"] for r in reports] == [2, 2]
    assert "batch_size 5 is no multiple of the 2 processes" in reports[0]["message"]
    assert reports[0]["loss"] == reports[1]["loss"]  # the mean over both

    *_, record = train(TrainConfig(**options), pictures(), tmp_path / "one")
    assert reports[0]["loss"] == pytest.approx(record.loss, rel=1e-5 if precision == "no" else 1e-3)
    one, two = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    torch.manual_seed(0)
    untrained = networks.build(**TINY).state_dict()
    close = {"fp16": 2e-3}.get(precision, 1e-4 if optimizer == "muon" else 1e-5)  # Muon rounds to bfloat16
    for part in ("net", "ema"):
        assert one[part].keys() == two[part].keys()
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, atol=close, rtol=close)
    moved = {k: (one["net"][k] - untrained[k]).abs().max().item() for k in untrained}
    assert min(moved[k] for k in untrained if k.endswith("weight")) > 1e-3  # so "close" says something
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    assert [r["step"] for r in logs[0]] == [r["step"] for r in logs[1]] == [4, 8]


# ---------------------------------------------------------------- one run per folder

HOLD = """
import sys, time
from diffusion_utils.training.checkpoints import only_run
from pathlib import Path
with only_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_dead(tmp_path):
    out = tmp_path / "new" / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, out],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert other.stdout.readline() == "held\n"
        for resume in (False, True):
            with pytest.raises(FileExistsError, match=f"another run is going on in {out}: wait for it, or"):
                run(out, resume=resume)
        assert [p.name for p in out.iterdir()] == [".lock"]  # not even a log
    finally:
        other.kill()  # -9: it cannot tidy up
        other.wait()
    assert run(out).step == 12


def test_a_lock_of_somebody_else_is_no_other_run(tmp_path, as_nobody):
    (tmp_path / ".lock").touch(mode=0o600)
    if os.getuid():
        (tmp_path / ".lock").chmod(0)

    def hold():
        with only_run(tmp_path):
            pass

    assert as_nobody(hold) == f"PermissionError: [Errno 13] Permission denied: '{tmp_path}/.lock'"


def test_an_interrupted_cell_may_go_on_in_the_same_process(tmp_path, whole):
    first = train(config(), pictures(), tmp_path)
    while next(first).step < 5:  # left standing there, as an interrupted cell's is
        pass
    run(tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


def test_a_folder_is_free_again_after_an_error(tmp_path):
    def fails():
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        next(train(config(), pictures(), tmp_path, begin=fails))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "log.jsonl"]
    assert run(tmp_path).step == 12
