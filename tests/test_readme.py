"""The README's figures are those of the model cards, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from diffusion_utils import pretrained

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", pretrained.names())
def test_results_are_those_of_the_card(name):
    about = pretrained.card(name)
    results, errors = [line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |")]
    for number in (f"{about['parameters']:,}", f"{about['images_seen']:,}", f"{about['seconds'] / 60:.0f} min"):
        assert number in results
    assert about["machine"] in results and about["date"] in results
    measured = about["held_out_error_of_x0_as_share_of_variance"].values()
    assert [float(cell) for cell in errors.split("|")[2:-1]] == [round(value, 3) for value in measured]


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)\s]+)\)", TEXT)
    assert len(targets) > 10
    for target in targets:
        assert target.startswith(("http", "#")) or (ROOT / target).is_file(), target


def test_the_two_commands_are_the_first():
    first_block = TEXT.split("```")[1].strip().splitlines()
    assert first_block == [
        "pip install -r requirements.txt && jupyter lab notebooks/01_forward_noising.ipynb",
        "pip install -r requirements.txt && pytest",
    ]


def test_ci_runs_the_readmes_command():
    assert "pip install -q -r requirements.txt && pytest" in (ROOT / ".ci" / "run").read_text()
