"""The README's figures are those of the model cards, and its links lead somewhere."""

import json
import re
from pathlib import Path

import pytest

from diffusion_utils import pretrained
from diffusion_utils.pipeline import DEFAULT, Drawing

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
LADDER = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks/results/ladder").glob("*.json"))]
RUNGS = [name for name in pretrained.names() if name.startswith("cars32-")]


@pytest.mark.parametrize("name", [name for name in pretrained.names() if name not in RUNGS])
def test_results_are_those_of_the_card(name):
    about = pretrained.card(name)
    results, errors = [line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |")]
    if "held_out_reconstruction" in about:
        row, (channels, height, width) = LATENT["autoencoders"][name], LATENT["autoencoders"][name]["latent"]
        kid, floor = (f"{1000 * row[part]['kid']:.1f}".replace("-", "−") for part in ("generated", "floor"))
        kept = [f"{height}×{width}×{channels}", f"{row['psnr']:.1f} dB", f"{row['ssim']:.3f}", kid]
        assert [cell.strip() for cell in errors.split("|")[2:-1]] == kept
        assert f"photographs as they are score {floor}" in TEXT
        on_card = about["held_out_reconstruction"]  # of 512 photographs
        assert row["psnr"] == pytest.approx(on_card["psnr"], abs=0.2) and row["ssim"] == pytest.approx(
            on_card["ssim"], abs=0.01
        )
    for number in (f"{about['parameters']:,}", f"{about['images_seen']:,}", f"{about['seconds'] / 60:.0f} min"):
        assert number in results
    assert about["machine"] in results and about["date"] in results
    measured = about.get("held_out_error_of_x0_as_share_of_variance", {}).values()
    assert not measured or [float(cell) for cell in errors.split("|")[2:-1]] == [round(value, 3) for value in measured]


@pytest.mark.parametrize("name", RUNGS)
def test_results_of_the_ladders_weights_are_those_of_the_card(name):
    about = pretrained.card(name)
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |")]
    errors = about["held_out_error_of_x0_as_share_of_variance"]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [
        f"{about['parameters']:,}",
        f"{about['macs'] / 1e6:.1f}",
        f"{1000 * about['generated']['kid']:.0f}",
        *[f"{errors[f't={t}']:.3f}" for t in (99, 499, 899)],
        f"{about['seconds'] / 60:.0f} min",
        f"{about['machine']}, {about['date']}",
    ]


def test_the_table_of_skips_and_questions_is_that_of_the_ladder():
    rows = {"none": "none", "indices": "where the maxima were", "add": "features, added", "concat": "features, concat"}
    for skip, beginning in rows.items():
        (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {beginning}")]
        for cell, kind in zip(line.split("|")[2:-1], ("epsilon", "v_prediction", "edm", "sample"), strict=True):
            kids = [1000 * r["generated"]["kid"] for r in LADDER if r["row"] == f"{skip}-{kind}"]
            assert cell.strip() == f"{sum(kids) / len(kids):.0f}"
    trainings = [r for r in LADDER if r["row"] != "no-decay-raw"]  # the last weights of "no-decay"
    assert f"{len(trainings)} trainings on real cars" in TEXT


CURVE = [
    row
    for run in ("headline", "headline2")
    for row in json.loads((ROOT / f"benchmarks/results/curve-{run}.json").read_text())
]
PLAIN = {
    "sampler": "dpm_solver_pp",
    "steps": 20,
    "guidance_scale": 1,
    "guide": None,
    "skip_layers": None,
    "interval": None,
    "condition": None,
    "time_shift": 0,
}
SKIPPING = {"time_shift": 30, "guidance_scale": 3, "skip_layers": ["encoder.7"]}
EARLIER = "headline/snapshots/weights_000250000.safetensors"
WAYS = {
    "DPM-Solver++, 20 steps": {},
    "the same, time shift 30": {"time_shift": 30},
    "time shift 30, classifier-free guidance, w = 2": {"time_shift": 30, "guidance_scale": 2},
    "time shift 30, classifier-free guidance, w = 4": {"time_shift": 30, "guidance_scale": 4},
    "time shift 30, autoguidance, w = 3, for t ≥ 400": {
        "time_shift": 30,
        "guidance_scale": 3,
        "guide": EARLIER,
        "interval": [400, 999],
    },
    "time shift 30, skip-layer guidance, w = 2": {**SKIPPING, "guidance_scale": 2},
    "time shift 30, skip-layer guidance, w = 3": SKIPPING,
}


def measured(images_seen, **asked):
    """The scores of one row of the curve, as the README writes them."""
    asked = {"images_seen": images_seen, **PLAIN, **asked}
    (row,) = [row for row in CURVE if all(row[key] == value for key, value in asked.items())]
    assert row["count"] == 748 and f"{1000 * row['floor']['kid']:.2f}".replace("-", "−") in TEXT
    scores = row["generated"]
    return row, [
        f"{1000 * scores['kid']:.0f}",
        f"{scores['precision']:.3f}",
        f"{scores['recall']:.3f}",
        f"{scores['copies_in_pixels']:g}, {scores['copies_in_features']:g}",
    ]


def cells(beginning):
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {beginning} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def drawn_as(row):
    """How the pictures of a measurement were drawn."""
    return Drawing.from_card({"drawing": {name: row[name] for name in vars(DEFAULT) if name in row}})


def advised(name):
    return Drawing.from_card(pretrained.card(name))


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_drawing_are_as_measured(way):
    assert cells(way) == measured(pretrained.card("stanford-cars-1m")["images_seen"], **WAYS[way])[1]


SPEED = json.loads((ROOT / "benchmarks/results/drawing_speed.json").read_text())
STUDENT = json.loads((ROOT / "benchmarks/results/curve-student.json").read_text())
NAMES = {
    "as advised": ("as advised", SKIPPING),
    "not guided": ("not guided, time shift 30", {"time_shift": 30}),
    "bf16": ("the same in bfloat16", None),
    "compiled": ("the same, compiled", None),
    "10 steps": ("guided, 10 steps", {**SKIPPING, "steps": 10}),
    "5 steps": ("guided, 5 steps", {**SKIPPING, "steps": 5}),
}


def test_the_times_of_drawing_are_as_measured():
    assert SPEED["weights"] == "stanford-cars-1m" and SPEED["pictures"] == 16 and SPEED["threads"] == 2
    assert drawn_as(SPEED) == advised("stanford-cars-1m")
    for way, took in SPEED["ways"].items():
        name, row = f"{way}, {took['parameters'] / 1e6:.0f} M", None
        if way in NAMES:
            name, how = NAMES[way]
            if how is not None:
                row, _ = measured(pretrained.card("stanford-cars-1m")["images_seen"], **how)
        elif way.startswith("student"):
            steps = took["steps"]
            name = f"few-step student, {steps} step{'s' * (steps > 1)}"
            (row,) = [row for row in STUDENT if (row["steps"], row["guidance_scale"]) == (steps, 1)]
        scores = (
            ["", ""] if row is None else [f"{1000 * row['generated']['kid']:.0f}", f"{row['generated']['recall']:.3f}"]
        )
        assert cells(name) == [f"{took['steps']}", f"{took['seconds']:.2f} s", f"{took['ratio']:.2f}", *scores]


def test_the_weights_are_drawn_with_in_the_best_of_these_ways():
    images_seen = pretrained.card("stanford-cars-1m")["images_seen"]
    best = min(WAYS, key=lambda way: measured(images_seen, **WAYS[way])[0]["generated"]["kid"])
    assert drawn_as(WAYS[best]) == advised("stanford-cars-1m")


def test_the_training_is_as_measured():
    seen = sorted({row["images_seen"] for row in CURVE if (row["skip_layers"], row["steps"]) == (["encoder.7"], 20)})
    assert len(seen) > 5 and seen[-1] == pretrained.card("stanford-cars-1m")["images_seen"]
    for images in seen:
        row, scores = measured(images, **SKIPPING)
        unguided, _ = measured(images, time_shift=30)
        kid = f"{1000 * unguided['generated']['kid']:.0f}"
        assert cells(f"{images:,}") == [f"{row['seconds_of_training'] / 60:.0f} min", kid, *scores]


def test_the_table_of_peers_is_as_measured():
    rows = [r for r in json.loads((ROOT / "benchmarks/results/peers-32-cpu.json").read_text()) if r["minutes"]]
    assert len(rows) == 5 and {(r["minutes"], r["size"], r["count"]) for r in rows} == {(5, 32, 256)}
    for r in rows:
        (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {r['peer']} |") and " MiB " in line]
        assert [cell.strip() for cell in line.split("|")[2:-1]] == [
            f"{r['parameters'] / 1e6:.1f} M",
            f"{r['macs'] / 1e6:,.0f} M",
            f"{r['images_per_second']:.0f}",
            f"{r['images_seen']:,}",
            f"{r['seconds_to_draw_16']:.1f} s",
            f"{r['peak_memory_mib']:,} MiB",
            f"{1000 * r['generated']['kid']:.0f} ± {1000 * r['generated']['kid_std']:.0f}",
        ]
        assert f"real against real {1000 * r['floor']['kid']:.1f}".replace("-", "−") in TEXT
        assert f"{r['machine']}, {r['date']}, with a training on the other core" in TEXT


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
    assert "pip install -r requirements.txt && pytest\n" in TEXT
    assert re.search(
        r"\nset -euo pipefail\n.*\npip install -q -r requirements.txt\n.*\npytest\n",
        (ROOT / ".ci" / "run").read_text(),
        re.DOTALL,
    )


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"\b(?:TODO|XXX|FIXME|[A-Z]{9,})\b", re.sub(r"`[^`]*`|[A-Z]+_[A-Z_]+|\w+\.md", "", TEXT))


PROMPTS = {
    name: json.loads((ROOT / f"benchmarks/results/prompts-{name}.json").read_text())
    for name in ("stanford-cars-text", "toy-cars-text")
}


def test_prompt_accuracy_is_as_measured():
    assert {row["count"] for row in PROMPTS["stanford-cars-text"]} == {748}
    for row in PROMPTS["stanford-cars-text"]:
        shares = [f"{row[name]:.2f}" for name in ("vivid colour", "colour", "body", "all")]
        assert cells(row["way"]) == [*shares, f"{1000 * row['generated']['kid']:.0f}"]
    scores = {row["way"]: row["generated"] for row in PROMPTS["stanford-cars-text"]}
    both, block = (scores[f"without encoder.7{more}, w = 3"] for more in (" and caption", ""))
    assert (
        f"(recall {both['recall']:.3f} against {block['recall']:.3f}, at the same precision, {both['precision']:.2f})"
        in TEXT
    )
    assert f"{both['precision']:.2f}" == f"{block['precision']:.2f}"
    real = PROMPTS["stanford-cars-text"][0]["real"]
    assert cells("the photographs themselves")[:4] == [
        f"{real[name]:.2f}" for name in ("vivid colour", "colour", "body", "all")
    ]
    for row in PROMPTS["toy-cars-text"]:
        shares = [f"{row[part][name]:.3f}" for part in ("seen", "held_out") for name in ("colour", "body", "all")]
        assert cells(row["way"]) == shares


def test_prompts_are_obeyed_as_the_project_wants_it():
    """Of toy cars, at the best scale: colour ≥ 95%, all four attributes ≥ 90%, of held-out kinds ≥ 80%."""
    best = max(PROMPTS["toy-cars-text"], key=lambda row: row["held_out"]["all"] + row["seen"]["all"])
    assert best["seen"]["colour"] >= 0.95 and best["seen"]["all"] >= 0.9 and best["held_out"]["all"] >= 0.8
    assert best["real"]["all"] > 0.98, "a reader that cannot be trusted measures nothing"


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_were_measured_with_the_weights_that_ship(name):
    assert {row["images_seen"] for row in PROMPTS[name]} == {pretrained.card(name)["images_seen"]}


LATENT = json.loads((ROOT / "benchmarks/results/latent.json").read_text())
LATENT_SPEED = json.loads((ROOT / "benchmarks/results/latent-speed.json").read_text())
SPACES = {"pixels": "pixels, 64×64×3", "latents-4": "latents, 16×16×4", "latents-8": "latents, 8×8×8"}


def test_pixels_and_latents_cost_what_was_measured():
    assert list(LATENT_SPEED["networks"])[:3] == list(SPACES) and LATENT_SPEED["threads"] == 2
    for name, beginning in SPACES.items():
        row, took = next(r for r in LATENT["networks"] if r["weights"] == name), LATENT_SPEED["networks"][name]
        before, decoder = row.get("autoencoders_seconds", 0), row.get("decoders_macs", 0)
        assert cells(beginning) == [
            f"{row['images_seen']:,}",
            f"{(row['seconds_of_training'] + before) / 60:.0f}",
            f"{before / 60:.0f}",
            f"{row['macs'] / 1e6:.0f}",
            f"{decoder / 1e6:.0f}",
            f"{took['seconds']:.2f} s",
            f"{took['ratio']:.2f}",
        ]


def test_pixels_and_latents_draw_as_well_as_was_measured():
    names = {name: beginning.split(", ")[-1] for name, beginning in SPACES.items()} | {
        "pixels": "pixels",
        "stanford-cars-latent": "`stanford-cars-latent`",
    }
    assert {row["weights"] for row in LATENT["networks"]} == set(names)
    for row in LATENT["networks"]:
        scores = row["generated"]
        assert row["count"] == 748 and scores["copies_in_pixels"] == scores["copies_in_features"] == 0
        assert cells(f"{names[row['weights']]}, {row['way']}") == [
            f"{1000 * scores['kid']:.0f}",
            f"{scores['precision']:.3f}",
            f"{scores['recall']:.3f}",
            f"{row['vivid colour']:.2f}",
            f"{row['body']:.2f}",
        ]


def test_latents_were_measured_with_the_weights_that_ship():
    card = pretrained.card("stanford-cars-latent")
    rows = [row for row in LATENT["networks"] if row["weights"] == "stanford-cars-latent"]
    assert {row["images_seen"] for row in rows} == {card["images_seen"]}
    best = min(rows, key=lambda row: row["generated"]["kid"])
    assert drawn_as(best) == advised("stanford-cars-latent")
    assert set(LATENT["autoencoders"]) == {name for name in pretrained.names() if "autoencoder" in name}
