"""The README and RESULTS.md hold what was measured, the weights draw in the best ways, and links lead somewhere."""

import importlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from diffusion_utils import pretrained
from diffusion_utils.commands import parse
from diffusion_utils.pipeline import DEFAULT, Drawing

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
report = importlib.import_module("report")
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in report.PAGES}
README, RESULTS = PAGES.values()


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_as_measured_and_none_is_written_by_hand(page):
    assert report.filled(PAGES[page]) == PAGES[page], "run python benchmarks/report.py"
    outside = re.sub(r"<!-- table: \w+ -->\n.*?<!-- end -->", "", PAGES[page], flags=re.DOTALL)
    tables = [line for line in outside.splitlines() if line.startswith("| ---")]
    assert len(tables) == (2 if page == "README.md" else 0)  # of the notebooks, and of the modules


def test_every_table_stands_on_a_page():
    shown = re.findall(r"<!-- table: (\w+) -->", README + RESULTS)
    assert sorted(shown) == sorted(report.TABLES)


def test_a_table_that_is_out_of_date_is_mended():
    row = next(line for line in RESULTS.splitlines() if line.startswith("| `stanford-cars-1m` | 997,404"))
    changed = RESULTS.replace(row, row.replace("997,404", "1,000"))
    assert changed != RESULTS and report.filled(changed) == RESULTS
    with pytest.raises(ValueError, match="no table named 'nothing': choose one of finding, "):
        report.filled("<!-- table: nothing -->\n<!-- end -->")


def test_tables_hold_the_numbers_of_the_cards_and_of_the_measurements():
    """A few cells looked up by hand, so that a wrong column is noticed."""
    card = pretrained.card("stanford-cars-text")
    line = next(line for line in RESULTS.splitlines() if line.startswith("| `stanford-cars-text` | 1,"))
    assert [f"{card['parameters']:,}", f"{card['images_seen']:,}"] == [line.split(" | ")[i] for i in (1, 4)]
    rows = json.loads((ROOT / "benchmarks/results/prompts-stanford-cars-text.json").read_text())
    for row in rows:
        (line,) = [line for line in RESULTS.splitlines() if line.startswith(f"| {row['way']} | ") and "%" not in line]
        assert float(line.split(" | ")[3]) == round(row["body"], 2)
        assert int(line.split(" | ")[5].rstrip(" |")) == round(1000 * row["generated"]["kid"])
    ladder = [json.loads(path.read_text()) for path in (ROOT / "benchmarks/results/ladder").glob("none-sample-*.json")]
    mean = sum(1000 * row["generated"]["kid"] for row in ladder) / len(ladder)
    assert len(ladder) == 2 and f"| none | 770 | 701 | 647 | {mean:.0f} |" in RESULTS
    peers = {row["peer"]: row for row in json.loads((ROOT / "benchmarks/results/peers-32-cpu.json").read_text())}
    line = next(line for line in RESULTS.splitlines() if line.startswith("| diffusers | 1"))
    assert f"{peers['diffusers']['peak_memory_mib']:,} MiB" == line.split(" | ")[6]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) < 14_336


def test_recipes_are_commands_that_parse():
    for card in report.shipped().values():
        for line in card.get("recipe", []):
            words = shlex.split(line, comments=True)
            assert words[:4] == ["python", "-m", "diffusion_utils", "train"]
            assert callable(parse(words[3:]))


def drawn_as(row):
    """How the pictures of a measurement were drawn."""
    return Drawing.from_card({"drawing": {name: row[name] for name in vars(DEFAULT) if name in row}})


def advised(name):
    return Drawing.from_card(pretrained.card(name))


def test_the_weights_are_drawn_with_in_the_best_of_these_ways():
    """By both late layers; what is better by the early one has less recall, as RESULTS.md says."""
    rows = [row for row in report.read("guidance-stanford-cars-1m") if row.get("part") == "validation"]
    rows = [row for row in rows if row["images_seen"] == pretrained.card("stanford-cars-1m")["images_seen"]]
    assert len(rows) > 2
    for ruler in ("kid", "kid_lite2"):
        best = min(rows, key=lambda row: row["generated"][ruler])
        assert drawn_as(best) == advised("stanford-cars-1m")
    for row in rows:
        worse = row["generated"]["kid_early"] >= best["generated"]["kid_early"]
        assert worse or row["generated"]["recall"] < best["generated"]["recall"]


def test_the_times_of_drawing_were_measured_with_the_weights_that_ship():
    speed = report.read("drawing_speed")
    assert speed["weights"] == "stanford-cars-1m" and speed["pictures"] == 16 and speed["threads"] == 2
    assert drawn_as(speed) == advised("stanford-cars-1m")
    assert report.read("latent-speed")["threads"] == 2 and [*report.read("latent-speed")["networks"]][:3] == [
        *report.SPACES
    ]


def test_the_weights_that_ship_are_reported_as_their_card_says():
    card = pretrained.card("stanford-cars-1m")
    rows = [row for row in report.read("guidance-stanford-cars-1m") if row.get("part") == "test"]
    (row,) = [row for row in rows if row["generated"] == card["generated"]]
    assert row["images_seen"] == card["images_seen"] and drawn_as(row) == advised("stanford-cars-1m")


def test_ideal_denoisers_were_compared_with_the_weights_that_ship():
    card = pretrained.card("stanford-cars-1m")
    assert {row["images_seen"] for row in report.read("likeness-stanford-cars-1m")} == {card["images_seen"]}
    assert f"that of `stanford-cars-1m` (after {card['images_seen']:,} pictures), on four held-out" in RESULTS


def test_peers_were_given_equal_minutes():
    rows = [row for row in report.read("peers-32-cpu") if row["minutes"]]
    assert len(rows) == 5 and {(row["minutes"], row["size"], row["count"]) for row in rows} == {(5, 32, 256)}
    for row in rows:
        assert f"{row['machine']}, {row['date']}, with a training on the other core" in RESULTS


def test_longer_peers_were_given_equally_many_pictures_or_an_hour():
    ours, small, large = report.read("peers-32-cpu-longer")
    assert ours["images_seen"] == small["images_seen"] == 400_000 and large["minutes"] == 60
    assert 0.9 < small["parameters"] / ours["parameters"] < 1.1
    assert small["date"] == large["date"] and f"{large['machine']}, {large['date']}. The first two shared" in RESULTS


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)\s]+)\)", README + RESULTS)
    assert len(targets) > 10
    for target in targets:
        file, _, anchor = target.partition("#")
        assert target.startswith(("http", "#")) or (ROOT / file).is_file(), target
        if anchor and not target.startswith("http"):
            text = (ROOT / file).read_text(encoding="utf-8") if file else RESULTS
            headings = [title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)]
            assert anchor in headings, target


def test_the_two_commands_are_the_first():
    first_block = README.split("```")[1].strip().splitlines()
    assert first_block == [
        "pip install -r requirements.txt && jupyter lab notebooks/00_diffusion_in_an_hour.ipynb",
        "pip install -r requirements.txt && pytest",
    ]


def test_ci_runs_the_readmes_command():
    assert "pip install -r requirements.txt && pytest\n" in README
    assert re.search(
        r"\nset -euo pipefail\n.*\npip install -q -r requirements.txt\n.*\npytest\n",
        (ROOT / ".ci" / "run").read_text(),
        re.DOTALL,
    )


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"\b(?:TODO|XXX|FIXME|[A-Z]{9,})\b", re.sub(r"`[^`]*`|[A-Z]+_[A-Z_]+|\w+\.md", "", README))


PROMPTS = {
    name: json.loads((ROOT / f"benchmarks/results/prompts-{name}.json").read_text())
    for name in ("stanford-cars-text", "toy-cars-text")
}


def test_what_the_text_says_of_recall_is_as_measured():
    scores = {row["way"]: row["generated"] for row in PROMPTS["stanford-cars-text"]}
    both, block = (scores[f"without encoder.7{more}, w = 3"] for more in (" and caption", ""))
    assert (
        f"(recall {both['recall']:.3f} against {block['recall']:.3f}), at less precision "
        f"({both['precision']:.2f} against {block['precision']:.2f})" in RESULTS
    )


def test_prompts_are_obeyed_as_the_project_wants_it():
    """Of toy cars, at the best scale: colour ≥ 95%, all four attributes ≥ 90%, of held-out kinds ≥ 80%."""
    best = max(PROMPTS["toy-cars-text"], key=lambda row: row["held_out"]["all"] + row["seen"]["all"])
    assert best["seen"]["colour"] >= 0.95 and best["seen"]["all"] >= 0.9 and best["held_out"]["all"] >= 0.8
    assert best["real"]["all"] > 0.98, "a reader that cannot be trusted measures nothing"


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_were_measured_with_the_weights_that_ship(name):
    assert {row["images_seen"] for row in PROMPTS[name]} == {pretrained.card(name)["images_seen"]}


LATENT = json.loads((ROOT / "benchmarks/results/latent.json").read_text())


def test_latents_were_measured_with_the_weights_that_ship():
    card = pretrained.card("stanford-cars-latent")
    rows = [row for row in LATENT["networks"] if row["weights"] == "stanford-cars-latent"]
    assert {row["images_seen"] for row in rows} == {card["images_seen"]}
    best = min(rows, key=lambda row: row["generated"]["kid"])
    assert drawn_as(best) == advised("stanford-cars-latent")
    assert set(LATENT["autoencoders"]) == {name for name in pretrained.names() if "autoencoder" in name}


@pytest.mark.parametrize("words", [["--help"], ["README.md"]])
def test_tables_are_written_by_the_bare_command_alone(monkeypatch, words):
    def fail(*arguments):
        raise AssertionError("a page has been written")

    monkeypatch.setattr("diffusion_utils.files.write_text", fail)
    monkeypatch.setattr(sys, "argv", ["report.py", *words])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "benchmarks/report.py"), run_name="__main__")
