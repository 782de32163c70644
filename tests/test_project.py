"""The project's own papers agree with the package: version, changelog, citation, layers."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import diffusion_utils
from diffusion_utils.data import toy_cars
from diffusion_utils.networks import registry
from diffusion_utils.training import TrainConfig, train

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def release_notes(version):
    return subprocess.run([sys.executable, ROOT / ".ci/release-notes", version], capture_output=True, text=True)


def test_changelog_and_citation_know_this_version():
    version = diffusion_utils.__version__
    assert f"\n## {version} (" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in citation
    for address in PROJECT["project"]["urls"].values():
        assert address in citation


def test_release_notes_are_those_of_the_version_that_is_packaged():
    version = diffusion_utils.__version__
    section = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split(f"\n## {version}")[1].split("\n## ")[0]
    notes = release_notes(version)
    assert notes.returncode == 0 and notes.stdout.strip() and section.endswith(notes.stdout.rstrip() + "\n")
    other = release_notes("0.1.0")
    assert other.returncode == 1 and "diffusion_utils says version" in other.stderr and not other.stdout


def test_every_layer_of_the_package_stands_in_contributing_in_the_same_order():
    lines = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    layers = [name for line in lines for name in line.split(" : ")]
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
    listed = [name for row in rows for name in re.findall(r"`(\w+)/?`", row)]
    place = {name: number for number, row in enumerate(rows) for name in re.findall(r"`(\w+)/?`", row)}
    assert {*listed} == {*layers} - {"__main__"}
    upwards = [place[name] for name in reversed(layers) if name != "__main__"]
    assert upwards == sorted(upwards)


def test_no_module_takes_an_import_into_a_function_to_hide_it_from_the_layers():
    for path in (ROOT / "diffusion_utils").rglob("*.py"):
        assert not re.findall(r"^ +(?:from|import) diffusion_utils", path.read_text(encoding="utf-8"), re.M), path


def test_the_network_that_contributing_shows_works_as_it_stands(monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    monkeypatch.setattr(registry, "NETWORKS", dict(registry.NETWORKS))
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], {})  # our own page's code
    config = TrainConfig({"name": "mine"}, steps=60, batch_size=16, learning_rate=4e-3, warmup_steps=5, log_every=20)
    losses = [record.loss for record in train(config, toy_cars.load(32, 16).images)]
    assert losses[-1] < 0.9 * losses[0]
