"""What every test shares: a quiet plotting backend, few threads, a cache of its own, tiny weights, the markers."""

import os
from itertools import takewhile
from pathlib import Path

import matplotlib
import pytest
import torch

from diffusion_utils import networks, pretrained
from diffusion_utils.prediction import Denoiser
from diffusion_utils.schedule import make_schedule

matplotlib.use("Agg")
# The tensors here are small: two threads would mostly wait for each other.
torch.set_num_threads(1)

# What a card needs, for a network of 8×8 pictures.
TINY = {
    "network": {"name": "resnet", "channels": [8], "stem": 2, "embedding_dim": 8},
    "prediction_type": "sample",
    "schedule": "cosine",
    "num_train_timesteps": 100,
    "zero_terminal_snr": False,
    "size": 8,
}

# Files and tests that `pytest -m fast` leaves out, besides notebooks and what is marked with @pytest.mark.slow:
# they need a notebook, a browser, training or Stanford Cars, or take many seconds.
SLOW = {
    "test_book.py",
    "test_browser.py",
    "test_page.py",
    "test_playground.py",
    "test_colab.py",
    "test_benchmarks.py",
    "test_ladder.py",
    "test_notebooks.py",
    "test_resume.py",
    "test_training.py",
    "test_arithmetic.py",
    "test_devices.py",
    "test_conditions.py",
    "test_commands.py::test_accelerate_launches_two_processes_that_train_the_same_model",
    "test_commands.py::test_sigterm_saves_says_how_to_go_on_and_exits_with_0",
    "test_commands.py::test_resume_goes_on_with_the_settings_of_the_run",
    "test_commands.py::test_a_student_is_tuned_from_weights_and_drawn_in_two_steps",
    "test_consistency.py::test_a_tuned_network_reaches_a_picture_in_one_step",
    "test_autoencoder.py::test_it_learns_to_copy",
    "test_text.py::test_a_network_learns_what_words_mean",
    "test_super_resolution.py::test_a_network_learns_to_look_at_the_small_picture",
    "test_attributes.py::test_a_trained_reader_reads_cars_it_has_not_seen",
    "test_attributes.py::test_a_reader_of_letters_tells_them_apart",
    "test_lora.py::test_only_the_adapters_learn_and_a_resumed_run_equals_an_uninterrupted_one",
    "test_stanford_cars.py::test_the_real_training_pictures",
    "test_stanford_cars.py::test_every_real_class_has_a_body_type",
}


def pytest_configure(config):
    config.addinivalue_line("markers", "fast: needs no notebook, browser, training or download; 90 seconds in all")
    config.addinivalue_line("markers", "slow: all others")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Give every test outside SLOW the marker `fast`, and all others `slow`."""
    for item in items:
        names = {item.path.name, f"{item.path.name}::{getattr(item, 'originalname', item.name)}"}
        here = item.path.parent == Path(__file__).parent
        if not here or names & SLOW:
            item.add_marker("slow")
        if not item.get_closest_marker("slow"):
            item.add_marker("fast")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Tests neither read nor fill the reader's picture cache."""
    os.environ["DIFFUSION_UTILS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_denoiser():
    """Function: (seed, **card) to a random denoiser and its whole card.

    Every parameter is random, also those that begin at 0.  What the card lacks is as in TINY; with
    "conditions" the network takes them.
    """

    def make(seed: int = 0, **card) -> tuple[Denoiser, dict]:
        card = TINY | card
        if "conditions" in card:
            card["network"] = card["network"] | {"cond_dim": len(card["conditions"])}
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            net = networks.build(**card["network"]).eval()
            for parameter in net.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        schedule = make_schedule(card["schedule"], card["num_train_timesteps"], card["zero_terminal_snr"])
        return Denoiser(net, schedule, card["prediction_type"], card.get("sigma_data", 0.5)), card

    return make


@pytest.fixture(scope="session")
def tiny_weights(tiny_denoiser):
    """Function: (path, seed, dtype, **card) writes what `tiny_denoiser` makes, and returns the path."""

    def save(path: str | Path, seed: int = 0, dtype: torch.dtype = torch.float16, **card) -> Path:
        pretrained.save(path, *tiny_denoiser(seed, **card), dtype)
        return Path(path)

    return save


@pytest.fixture
def as_nobody(tmp_path):
    """Function: (act) to the error that an ordinary user meets who may do everything in `tmp_path`, as "Kind: text";
    None: there is none."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")

    def run(act) -> str | None:
        # Pytest and xdist keep their folders to themselves.
        own = takewhile(lambda folder: folder.name.startswith(("pytest-", "popen-")), tmp_path.parents)
        for folder in (tmp_path, *own):
            folder.chmod(0o777)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if os.getuid() == 0:
                    os.setgroups([]), os.setgid(65534), os.setuid(65534)
                act()
            except Exception as error:
                os.write(writing, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(0)
        os.close(writing)
        os.waitpid(child, 0)
        with open(reading, encoding="utf-8") as said:
            return said.read() or None

    return run
