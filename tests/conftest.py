"""What every test shares: a quiet plotting backend, few threads, and a cache of its own."""

import os

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
# The tensors here are small: two threads would mostly wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Tests neither read nor fill the reader's picture cache."""
    os.environ["DIFFUSION_UTILS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
