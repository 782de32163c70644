"""The notebooks in Colab: their first cell, and all their code with packages as old as Colab's.

The second part needs an environment that `.ci/colab-environment` makes (`.ci/run` does); it has no network.  It
clones this checkout, so what is not committed is not tested.
"""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
COLAB = REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")


def code(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@EVERY
def test_the_first_cell_fetches_the_project_from_where_it_lives(path):
    first = code(path)[0]
    assert f'"{REPOSITORY}"' in first
    # One and the same cell everywhere, but for the advice which runtime to choose.
    advice = r'print\(".*"\)'
    assert re.sub(advice, "", first) == re.sub(advice, "", code(NOTEBOOKS[0])[0])
    assert ("GPU (Runtime → Change runtime type" in first) == (path.stem == "03_training_on_stanford_cars")
    assert f"[Run it in Colab]({COLAB}/blob/main/notebooks/{path.name})" in path.read_text()


@EVERY
def test_anywhere_else_the_first_cell_does_nothing(path, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: pytest.fail(f"it ran {arguments}"))
    monkeypatch.chdir(path.parent)
    exec(code(path)[0], {})
    assert Path.cwd() == path.parent and capsys.readouterr().out == ""


@EVERY
def test_a_notebook_opened_from_another_folder_finds_its_files(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(code(path)[0], {})
    for name in re.findall(r'"(\.\./[^"]+)"', "\n".join(code(path))):
        assert Path(name).exists(), name


def test_the_readme_has_the_same_links():
    text = (ROOT / "README.md").read_text()
    for path in NOTEBOOKS:
        assert f"({COLAB}/blob/main/notebooks/{path.name})" in text


# ---- with old packages

RUN = """
import os, sys
sys.path.insert(0, os.environ["FAKE_COLAB"])
import google.colab, matplotlib, nbformat
matplotlib.use("Agg")
path, small = sys.argv[1], eval(sys.argv[2])
if path != sys.argv[3]:
    from diffusion_utils import pipeline, sampling
    whole = sampling.sample
    def hasty(denoiser, seeds, *arguments, **options):
        "Pictures in a fifth of the steps: rough, but drawn by the same code."
        if len(arguments) > 2:
            arguments = (*arguments[:2], -(-arguments[2] // 5), *arguments[3:])
        else:
            options["steps"] = -(-options.get("steps", 20) // 5)
        return whole(denoiser, seeds, *arguments, **options)
    pipeline.sample = sampling.sample = hasty
cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
space = {"__name__": "__main__"}
for place, source in enumerate(cells[:1] if path == sys.argv[3] else cells[1:]):
    # Asserts are left out (what is learnt in a few steps is not worth asserting), errors are not.
    exec(compile(source, f"cell {place}", "exec", optimize=1), space)
    space.update({name: value for name, value in small.items() if type(space.get(name)) is type(value)})
"""
# Settings of the notebooks' trainings, made small; by name, and by kind where two have one name.
SMALL = {
    "POINT_STEPS": 60,
    "PICTURE_STEPS": 2,
    "OVERFIT_STEPS": 5,
    "COMPARE_STEPS": 20,
    "TRAIN_IMAGES": 1280,
    "MINI_STEPS": 20,
    "STEPS": 20,
}
SMALL_PARTS = {"STEPS": {"autoencoder": 20, "denoiser": 20}}


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """(run, folder): a function that runs a notebook's cells as in Colab, after its first cell has fetched and
    installed the project for real, from this checkout in place of its address; and where it put it."""
    python = os.environ.get("COLAB_PYTHON")
    if not python:
        pytest.skip("this needs old packages: .ci/colab-environment FOLDER, then COLAB_PYTHON=FOLDER/bin/python")
    home = tmp_path_factory.mktemp("colab")
    (home / "fake" / "google" / "colab").mkdir(parents=True)
    (home / "fake" / "google" / "colab" / "__init__.py").touch()
    settings = {f"url.file://{ROOT}.insteadOf": REPOSITORY, "safe.directory": "*"}
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | {
        "HOME": str(home),
        "FAKE_COLAB": str(home / "fake"),
        "MPLCONFIGDIR": str(home),
        "GIT_CONFIG_COUNT": str(len(settings)),
        **{f"GIT_CONFIG_KEY_{i}": key for i, key in enumerate(settings)},
        **{f"GIT_CONFIG_VALUE_{i}": value for i, value in enumerate(settings.values())},
        # pip finds nothing to download, so whatever it installs is this project alone.
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "false",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }

    def run(path, first=False):
        small = SMALL | (SMALL_PARTS if "latent" in path.stem else {})
        folder = home / "simple-diffusion-model" / "notebooks"
        done = subprocess.run(
            [python, "-c", RUN, str(path), repr(small), str(path) if first else ""],
            env=environment,
            text=True,
            cwd=home if first else folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    said = run(NOTEBOOKS[0], first=True)
    assert "Ready: any runtime will do" in said
    return run, home / "simple-diffusion-model"


def test_the_first_cell_installs_the_project_and_leaves_torch_alone(colab):
    python, folder = os.environ["COLAB_PYTHON"], colab[1]
    where = (
        "import diffusion_utils, torch, ipywidgets; "
        "print(diffusion_utils.__file__, torch.__file__, ipywidgets.__version__)"
    )
    shown = subprocess.run(
        [python, "-c", where], capture_output=True, text=True, cwd=folder.parent, env={"PATH": os.environ["PATH"]}
    ).stdout.split()
    package, torch, widgets = shown
    assert str(Path(python).parents[1]) in package and widgets == "7.7.1"
    import torch as ours

    assert torch == ours.__file__  # not installed again beside it


def test_the_widgets_pass_their_tests_with_ipywidgets_7(colab, tmp_path):
    where = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [
        os.environ["COLAB_PYTHON"],
        "-m",
        "pytest",
        "-q",
        "-n0",
        str(ROOT / "tests" / "test_widgets.py"),
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=where)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]


@EVERY
def test_all_code_runs_with_the_oldest_packages(colab, path):
    colab[0](colab[1] / "notebooks" / path.name)
