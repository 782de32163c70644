"""Write every table of RESULTS.md and of the README anew, from results/*.json and the model cards.

    python benchmarks/report.py

A table stands between the lines `<!-- table: NAME -->` and `<!-- end -->`; what is around them is left alone.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean

import tyro
from safetensors.torch import load_file

from diffusion_utils import pretrained
from diffusion_utils.evaluation import linear_bottleneck_error
from diffusion_utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "RESULTS.md")
RANK = 2048  # of the linear bottleneck: numbers that pass it
HEADLINE = "stanford-cars-1m"
SECOND_STAGE = 2_135_168  # pictures that it had seen when ways of drawing were compared on all held-out photographs
ERRORS = "held_out_error_of_x0_as_share_of_variance"
KIDS = {"kid": "KID × 1000, last layer:", "kid_lite2": "larger network's:", "kid_early": "early layer:"}
KINDS = {"epsilon": "ε", "v_prediction": "v", "edm": "EDM's F", "flow_prediction": "the velocity u"}
KINDS |= {"sample": "the picture x₀"}
SKIPS = dict(none="none", indices="where the maxima were (SegNet's indices)", add="features, added")
SKIPS |= {"concat": "features, concatenated"}
# Rows of the ladder: from the first version to its repair, then other sizes and networks; and single changes.
ROAD = ("first-epsilon", "first-sample", "stride-16", "stride-8", "decoder-blocks", "none-sample", "best")
ROAD += ("size-0.25", "size-1", "size-2", "size-4", "segnet-epsilon", "segnet-sample", "unet-sample")
CHANGES = ("none-sample", "no-timestep", "linear", "min-snr", "lognormal", "muon", "no-decay", "no-decay-raw")
CHANGES += ("up-transposed-k3", "up-nearest", "up-pixel-shuffle", "stem-4", "attention-8", "attention-16", "full-frame")
RACE = ("resnet", "skips", "segnet", "unet", "dit", "mixer")  # of the benchmark of notebook 10
SPACES = {"pixels": "pixels, 64×64×3", "latents-4": "latents, 16×16×4", "latents-8": "latents, 8×8×8"}
PLAIN = {"sampler": "dpm_solver_pp", "steps": 20, "guidance_scale": 1, "time_shift": 0}
PLAIN |= dict.fromkeys(("guide", "skip_layers", "interval", "condition"))
SHIFT = {"time_shift": 30}
SKIPPING = {"time_shift": 30, "guidance_scale": 3, "skip_layers": ["encoder.7"]}
EARLIER = "headline/snapshots/weights_000250000.safetensors"
WAYS = {
    "DPM-Solver++, 20 steps": {},
    "the same, time shift 30": SHIFT,
    "time shift 30, classifier-free guidance, w = 2": SHIFT | {"guidance_scale": 2},
    "time shift 30, classifier-free guidance, w = 4": SHIFT | {"guidance_scale": 4},
    "time shift 30, autoguidance, w = 3, for t ≥ 400": SHIFT
    | {"guidance_scale": 3, "guide": EARLIER, "interval": [400, 999]},
    "time shift 30, skip-layer guidance, w = 2": SKIPPING | {"guidance_scale": 2},
    "time shift 30, skip-layer guidance, w = 3": SKIPPING,
}
# Of results/drawing_speed.json: the name in the table, and, where quality was measured, the way of drawing.
FAST = {
    "as advised": ("as advised", SKIPPING),
    "bf16": ("the same in bfloat16", None),
    "compiled": ("the same, compiled", None),
    "not guided": ("not guided, time shift 30", SHIFT),
    "10 steps": ("guided, 10 steps", SKIPPING | {"steps": 10}),
    "5 steps": ("guided, 5 steps", SKIPPING | {"steps": 5}),
}
TABLES: dict[str, Callable[[], str]] = {}


def main() -> None:
    """Write every table of RESULTS.md and of the README anew, from results/*.json and the model cards."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        write_text(ROOT / page, filled(text))
        print(f"{page}: {len(re.findall('<!-- table: ', text))} tables")


def filled(text: str) -> str:
    """A page with its tables as they are measured.

    Raises:
        ValueError: it asks for a table that does not exist.
    """

    def fill(found: re.Match) -> str:
        name = found[1]
        if name not in TABLES:
            raise ValueError(f"no table named {name!r}: choose one of {', '.join(TABLES)}")
        return f"<!-- table: {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def table(make: Callable[[], Iterable[Iterable]]) -> Callable:
    """Decorator: a function that yields a head (names; those that end in ":" stand over numbers) and rows of text
    becomes a table in Markdown, known by the function's name."""

    def text() -> str:
        head, *rows = ([str(cell) for cell in row] for row in make())
        under = ["---:" if name.endswith(":") else "---" for name in head]
        head = [name.removesuffix(":") for name in head]
        return "\n".join(f"| {' | '.join(row)} |" for row in (head, under, *rows))

    TABLES[make.__name__] = text
    return make


def read(name: str) -> list | dict:
    """Measurements, by their name in results/."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def thousand(scores: dict, digits: int = 0) -> str:
    """KID × 1000; with a digit more where it is less than 1."""
    kid = 1000 * scores["kid"]
    return f"{kid:.{max(digits, int(abs(kid) < 1))}f}".replace("-", "−")


def curve(images_seen: int, **how) -> dict:
    """The measurement of one snapshot of the headline network, drawn in one way."""
    asked = {"images_seen": images_seen, "count": 748, **PLAIN, **how}
    rows = [row for run in ("headline", "headline2") for row in read(f"curve-{run}")]
    (found,) = [row for row in rows if all(row[name] == value for name, value in asked.items())]
    return found


def about(row: dict) -> str:
    """What a row is, in the words of today."""
    return row["about"].replace("asked for", "predicts")


def quality(scores: dict) -> list[str]:
    copies = f"{scores['copies_in_pixels']:g}, {scores['copies_in_features']:g}"
    return [thousand(scores), f"{scores['precision']:.3f}", f"{scores['recall']:.3f}", copies]


def rung(row: str) -> list[dict]:
    """A row of the ladder, by its seeds."""
    return [json.loads(path.read_bytes()) for path in sorted((RESULTS / "ladder").glob(f"{row}-seed*.json"))]


def rungs(row: str) -> str:
    """Mean KID × 1000 of a row of the ladder over its seeds."""
    found = rung(row)
    return f"{sum(1000 * each['generated']['kid'] for each in found) / len(found):.0f}"


def errors_at(measured: dict, times: Iterable[int]) -> list[str]:
    """The error of x̂₀ at some timesteps, as a share of the pictures' variance."""
    return [f"{measured[ERRORS][f't={t}']:.3f}" for t in times]


def linear(ratio: float, kind: str) -> str:
    spectrum = load_file(RESULTS / "stanford_cars_spectrum.safetensors")["eigenvalues"]
    error = linear_bottleneck_error(spectrum, ratio, RANK, kind)
    return f"{error:.0f}" if error > 100 else f"{error:.3f}"


@table
def finding():
    yield "predicts", *(f"linear, σ/α = {ratio}:" for ratio in (0.2, 1, 10)), "KID × 1000:", "with skips:"
    for kind in ("epsilon", "v_prediction", "sample"):
        errors = (linear(ratio, kind) for ratio in (0.2, 1, 10))
        yield KINDS[kind], *errors, rungs(f"none-{kind}"), rungs(f"add-{kind}")


@table
def bottleneck():
    yield "noise-to-signal σ/α", *(f"predicts {kind}" for kind in KINDS.values())
    for ratio in (0.05, 0.2, 1, 10):
        yield ratio, *(linear(ratio, kind) for kind in KINDS)


@table
def skips():
    kinds = [kind for kind in KINDS if kind != "flow_prediction"]
    yield "way around the bottleneck", *(f"predicts {KINDS[kind]}" for kind in kinds)
    for skip, name in SKIPS.items():
        yield name, *(rungs(f"{skip}-{kind}") for kind in kinds)


@table
def flow():
    """Flow matching's question and schedule beside others, without and with a way around the bottleneck."""
    times = (99, 499, 899)
    head = "KID × 1000:", *(f"t = {t}:" for t in times)
    yield "predicts", "schedule", *(f"{name}{each}" for name in ("", "features added, ") for each in head)
    pairs = {
        ("v_prediction", "cosine"): ("none-v_prediction", "add-v_prediction"),
        ("flow_prediction", "cosine"): ("none-flow_prediction", "add-flow_prediction"),
        ("flow_prediction", "flow"): ("flow-none", "flow-add"),
        ("sample", "cosine"): ("none-sample", "add-sample"),
    }
    for (kind, schedule), rows in pairs.items():
        yield KINDS[kind], schedule, *(cell for row in rows for cell in (rungs(row), *errors_at(rung(row)[0], times)))


@table
def road():
    """From the first version to its repair, and what else the ladder has beside it, a row per network."""
    times = (99, 499, 899)
    yield "row", "", "parameters:", "million MACs:", "KID × 1000:", *(f"t = {t}:" for t in times)
    for row in ROAD:
        first, *_ = rung(row)
        cost = f"{first['parameters']:,}", f"{first['macs'] / 1e6:.1f}"
        yield f"`{row}`", about(first), *cost, rungs(row), *errors_at(first, times)


@table
def changes():
    """Single changes to one network; where a row was trained twice, both seeds."""
    times = (99, 499, 899)
    yield "change", "KID × 1000:", *(f"t = {t}:" for t in times)
    for row in CHANGES:
        for each in rung(row):
            name = "nothing (`none-sample`)" if row == "none-sample" else about(each)
            twice = f", seed {each['seed']}" if len(rung(row)) > 1 else ""
            yield name + twice, thousand(each["generated"]), *errors_at(each, times)


@table
def samplers():
    """Steps and samplers, with the weights of one row of the ladder."""
    runs = {(run["sampler"], run["steps"]): run for run in read("samplers-cars32-none-sample")}
    counts = sorted({steps for _, steps in runs})
    yield "sampler", *(f"{steps} steps:" for steps in counts)
    for name in dict.fromkeys(sampler for sampler, _ in runs):
        yield name, *(thousand(runs[name, steps]["generated"]) for steps in counts)


@table
def search():
    """Networks of a million parameters after equal minutes; means over their seeds."""
    times, found = (19, 99, 499, 899), read("recipe")
    yield "candidate", "", "seeds:", "million MACs:", "pictures seen:", *(f"t = {t}:" for t in times)
    for name in dict.fromkeys(each["candidate"] for each in found):
        same = [each for each in found if each["candidate"] == name]
        seen = sum(each["images_seen"] for each in same) // len(same)
        measured = [each[ERRORS] for each in same]
        means = (sum(each[f"t={t}"] for each in measured) / len(same) for t in times)
        cost = len(same), f"{same[0]['macs'] / 1e6:.0f}", f"{seen:,}"
        yield name, about(same[0]), *map(str, cost), *(f"{mean:.4f}" for mean in means)


def shipped() -> dict[str, dict]:
    """The cards of all weights but the ladder's."""
    return {name: pretrained.card(name) for name in pretrained.names() if not name.startswith("cars32-")}


@table
def weights():
    yield "weights", "parameters", "file", "picture", "seen in training", "trained for", "machine, date"
    for name, card in shipped().items():
        size = (pretrained.FOLDER / f"{name}.safetensors").stat().st_size / 1e6
        made = f"{card['seconds'] / 60:.0f} min", f"{card['machine']}, {card['date']}"
        picture = f"{card['size']}×{card['size']}"
        yield f"`{name}`", f"{card['parameters']:,}", f"{size:.1f} MB", picture, f"{card['images_seen']:,}", *made


def recipes() -> str:
    """How the weights were trained, by the recipe on each card: a block of code, not a table."""
    lines = []
    for name, card in shipped().items():
        if recipe := card.get("recipe"):
            lines += ["", f"# {name}", *recipe]
    return "\n".join(["```bash", *lines[1:], "```"])


TABLES["recipes"] = recipes


@table
def errors():
    times = (99, 299, 499, 699, 899)
    yield "weights", *(f"t = {t}:" for t in times)
    for name, card in shipped().items():
        if found := card.get(ERRORS):
            yield f"`{name}`", *(f"{found[f't={t}']:.3f}" for t in times)


@table
def autoencoders():
    yield "weights", "latent", "PSNR:", "SSIM:", "KID × 1000:"
    for name, row in read("latent")["autoencoders"].items():
        channels, height, width = row["latent"]
        kept = f"{row['psnr']:.1f} dB", f"{row['ssim']:.3f}", thousand(row["generated"], 1)
        yield f"`{name}`", f"{height}×{width}×{channels}", *kept


@table
def ways():
    yield "way of drawing", "KID × 1000:", "precision:", "recall:", "copies, by pixels and by features:"
    for name, how in WAYS.items():
        yield name, *quality(curve(SECOND_STAGE, **how)["generated"])
    yield "real photographs", *quality(curve(SECOND_STAGE)["floor"])


def by_every_ruler(part: str):
    """Ways of drawing on one part of the held-out photographs; of several groups also how far one is from another."""
    others = ("precision", "recall", "contrast", "colour_spread")
    yield "pictures seen:", "way of drawing", *KIDS.values(), *(f"{name.replace('_', ' ')}:" for name in others)

    def cells(scores: dict, deviation: dict | None = None) -> list[str]:
        kids = [thousand({"kid": scores[name]}, 1) for name in KIDS]
        if deviation:
            kids = [f"{kid} ± {1000 * deviation[name]:.1f}" for kid, name in zip(kids, KIDS)]
        return kids + [f"{scores[name]:.3f}" for name in others]

    rows = [row for row in read(f"guidance-{HEADLINE}") if row.get("part") == part]
    for row in sorted(rows, key=lambda row: (row["images_seen"], -row["generated"]["kid"])):
        way = row["way"].replace("without encoder.7", "skip-layer guidance").replace("free", "free guidance")
        yield f"{row['images_seen']:,}", way, *cells(row["generated"], row.get("deviation"))
    yield "", "real photographs", *cells(rows[0]["floor"])


@table
def rulers():
    """Where ways of drawing are chosen."""
    yield from by_every_ruler("validation")


@table
def reported():
    """Where they are reported."""
    yield from by_every_ruler("test")


@table
def stretch():
    """What the last stretch of a training could switch on, and how long the weights' average should be: means over
    seeds."""
    times = ("t=49", "t=99", "t=299", "t=499", "t=899")
    yield "change", "average", "seeds:", *KIDS.values(), "recall:", *(f"{name.replace('=', ' = ')}:" for name in times)
    rows = read("stretch")
    for change, gamma in dict.fromkeys((row["change"], row["gamma"]) for row in rows):
        same = [row for row in rows if (row["change"], row["gamma"]) == (change, gamma)]
        average = "as kept" if gamma is None else f"1/{gamma + 2} of the run"
        kids = [f"{1000 * mean(row['generated'][kid] for row in same):.0f}" for kid in KIDS]
        recall = f"{mean(row['generated']['recall'] for row in same):.3f}"
        errors = [f"{mean(row[ERRORS][name] for row in same):.4f}" for name in times]
        yield change, average, len(same), *kids, recall, *errors


@table
def ideals():
    """Which ideal denoiser the headline network is like."""
    rows = read(f"likeness-{HEADLINE}")
    names = [name for name in rows[0]["likeness"] if name != "network"]
    yield "t:", *(f"{name}:" for name in names), "error of the network's x̂₀:", "of the best ideal one's:"
    for row in rows:
        errors = row["error"]["network"], min(row["error"][name] for name in names)
        yield row["t"], *(f"{row['likeness'][name]:.3f}" for name in names), *(f"{error:.3f}" for error in errors)


@table
def copying():
    """The same network and steps on few cars and on many, twice each."""
    yield (
        "cars:",
        "copies:",
        "distance:",
        "held-out cars':",
        "error on its cars:",
        "held-out:",
        "halves alike:",
        "floor:",
    )
    for row in read("copying"):
        shares = f"{row['copies']:.3f}", f"{row['distance']:.3f}", f"{row['held_out_distance']:.3f}"
        errors = (f"{row[name]:.3f}" for name in ("error", "held_out_error", "likeness", "other_noise_likeness"))
        yield f"{row['cars']:,}", *shares, *(error.replace("-", "−") for error in errors)


@table
def training():
    head = "KID × 1000, shift alone:", "guided:", "precision:", "recall:", "copies, by pixels and by features:"
    yield "pictures seen:", "trained for:", *head
    rows = [row for run in ("headline", "headline2") for row in read(f"curve-{run}")]
    guided = (row for row in rows if (row["skip_layers"], row["steps"]) == (["encoder.7"], 20))
    for images in sorted({row["images_seen"] for row in guided}):
        row, shift = curve(images, **SKIPPING), curve(images, **SHIFT)
        minutes = f"{row['seconds_of_training'] / 60:.0f} min"
        yield f"{images:,}", minutes, thousand(shift["generated"]), *quality(row["generated"])


@table
def prompts():
    names = ("vivid colour", "colour", "body", "all")
    rows = [row for row in read("prompts-stanford-cars-text") if row.get("part") == "test"]
    yield "way of drawing", "vivid colours:", "colours:", "body type:", "both:", "KID × 1000:"
    yield "the photographs themselves", *(f"{rows[0]['real'][name]:.2f}" for name in names), ""
    for row in rows:
        yield row["way"], *(f"{row[name]:.2f}" for name in names), thousand(row["generated"])


@table
def toy_prompts():
    parts = "colour:", "body:", "all four attributes:"
    yield "seen:", *parts, "held-out: colour:", *parts[1:]
    for row in read("prompts-toy-cars-text"):
        yield row["way"], *(f"{row[p][name]:.3f}" for p in ("seen", "held_out") for name in ("colour", "body", "all"))


@table
def inlets():
    yield "inlet", "pictures seen:", "w:", "seen kinds:", "held-out kinds:"
    names = {"both": "both", "pooled": "pooled vector", "cross": "cross-attention"}
    for inlet, name in names.items():
        rows = read(f"prompts-toy-text-{inlet}")
        for row in sorted(rows, key=lambda row: (row["images_seen"], row["guidance_scale"])):
            shares = (f"{row[part]['all']:.3f}" for part in ("seen", "held_out"))
            yield name, f"{row['images_seen']:,}", f"{row['guidance_scale']:g}", *shares


DECODERS = {
    "stanford-cars-autoencoder-4-pixels": "by pixels and edges alone, where all of these begin",
    "decoder-4-critic-short": "features and critic, 7,120 pictures more",
    "decoder-4-critic": "features and critic, 24,000",
    "decoder-4-four": "features four times as heavy, at twice the learning rate, 48,000",
    "decoder-4": "features, 24,000",
}


@table
def decoders():
    """The decoder of the 16×16×4 latents, trained on in several ways: where one is chosen."""
    yield "trained", "PSNR:", "KID × 1000, last layer:", "larger network's:", "early layer:", "precision:", "recall:"
    rows = read("latent")["on_validation"]
    for name, about in DECODERS.items():
        scores = rows[name]["generated"]
        kids = (f"{1000 * scores[ruler]:.1f}" for ruler in ("kid", "kid_lite2", "kid_early"))
        yield about, f"{rows[name]['psnr']:.1f} dB", *kids, *(f"{scores[key]:.3f}" for key in ("precision", "recall"))


@table
def latent_costs():
    macs = "million MACs a step:", "decoder, once:"
    yield "", "pictures seen:", "minutes:", "of them autoencoder:", *macs, "16 cars, 2 threads:", "ratio:"
    rows, speed = read("latent")["networks"], read("latent-speed")["networks"]
    for name, space in SPACES.items():
        row = next(row for row in rows if row["weights"] == name)
        before, decoder = row.get("autoencoders_seconds", 0), row.get("decoders_macs", 0)
        minutes = f"{(row['seconds_of_training'] + before) / 60:.0f}", f"{before / 60:.0f}"
        macs = f"{row['macs'] / 1e6:.0f}", f"{decoder / 1e6:.0f}"
        drawn = f"{speed[name]['seconds']:.2f} s", f"{speed[name]['ratio']:.2f}"
        yield space, f"{row['images_seen']:,}", *minutes, *macs, *drawn


@table
def latents():
    names = {"pixels": "pixels", "latents-4": "16×16×4", "latents-8": "8×8×8"}
    yield "", "KID × 1000:", "precision:", "recall:", "vivid colours:", "body type:"
    rows = read("latent")["networks"]
    for name in (*names, "stanford-cars-latent"):
        mine = [row for row in rows if row["weights"] == name]
        for row in [row for row in mine if "part" in row] or mine:  # those that were measured again with a new decoder
            shares = f"{row['vivid colour']:.2f}", f"{row['body']:.2f}"
            yield f"{names.get(name, f'`{name}`')}, {row['way']}", *quality(row["generated"])[:3], *shares


@table
def speed():
    yield "", "steps:", "16 cars, 2 threads:", "ratio:", "KID × 1000:", "recall:"
    students = read("curve-student")
    for way, took in read("drawing_speed")["ways"].items():
        name, scores = f"{way}, {took['parameters'] / 1e6:.0f} M", None
        if way in FAST:
            name, how = FAST[way]
            scores = how and curve(SECOND_STAGE, **how)["generated"]
        elif way.startswith("student"):
            name = f"few-step student, {took['steps']} step{'s' * (took['steps'] > 1)}"
            (row,) = [row for row in students if (row["steps"], row["guidance_scale"]) == (took["steps"], 1)]
            scores = row["generated"]
        drawn = f"{took['seconds']:.2f} s", f"{took['ratio']:.2f}"
        yield name, took["steps"], *drawn, *((thousand(scores), f"{scores['recall']:.3f}") if scores else ("", ""))


@table
def reflow():
    rows = read("reflow-toy-cars-resnet")
    steps = sorted({row["steps"] for row in rows})
    yield "", *(f"{n} step{'s'[: n > 1]}:" for n in steps)
    for state in ("before", "after"):
        kids = {row["steps"]: row for row in rows if row["network"] == state}
        yield f"{state} reflow", *(thousand(kids[n], 1) for n in steps)


def any_rows(networks: tuple[str, ...] = RACE, **settings) -> list[dict]:
    """Rows of the benchmark of notebook 10, in the order of the networks."""
    rows = [row for row in read("any-network")["rows"] if all(row[name] == value for name, value in settings.items())]
    return [row for name in networks for row in rows if row["network"] == name]


@table
def any_network():
    """Networks of one size after equal minutes and after equal work."""
    yield "", "", "pictures seen:", "KID × 1000:", "early layer:", *(f"t = {t}:" for t in (99, 299, 499, 699, 899))
    for budget, title in (("minutes", "equal minutes"), ("macs", "equal MACs")):
        for row in any_rows(budget=budget):
            kids = [f"{1000 * row[ruler]:.0f}" if ruler in row else "" for ruler in ("kid", "kid_early")]
            name = row["about"] + f", seed {row['seed']}" * (row["seed"] > 0)
            yield title, name, f"{row['images_seen']:,}", *kids, *errors_at(row, (99, 299, 499, 699, 899))


@table
def any_costs():
    """What each of these networks costs, and how far it looks: half of what moves a pixel of x̂₀ lies within."""
    head = "parameters:", "million MACs:", "learns from, pictures/s:", "draws, pictures/s:", "kept for a gradient, MiB:"
    yield "", *head, *(f"reach at t = {t}, pixels:" for t in (99, 499, 899))
    for row in any_rows(budget="minutes", seed=0):
        cost = (
            f"{row['parameters']:,}",
            f"{row['macs'] / 1e6:.0f}",
            f"{row['images_seen'] / row['processor_seconds']:.0f}",
        )
        cost += f"{row['pictures_drawn_per_processor_second']:.1f}", f"{row['bytes_kept_per_picture'] / 2**20:.1f}"
        reach = (str(sum(share < 0.5 for share in row["reach"][f"t={t}"])) for t in (99, 499, 899))
        yield row["about"], *cost, *reach


@table
def patches():
    """The transformer with three sizes of patches, equal minutes."""
    yield "", "tokens:", "million MACs:", "pictures seen:", *(f"t = {t}:" for t in (99, 299, 499, 699, 899))
    for name, tokens in (("dit-2", 256), ("dit", 64), ("dit-8", 16)):
        (row,) = any_rows((name,), budget="minutes", seed=0)
        cost = str(tokens), f"{row['macs'] / 1e6:.0f}", f"{row['images_seen']:,}"
        yield row["about"], *cost, *errors_at(row, (99, 299, 499, 699, 899))


@table
def counts():
    """How many pictures of one's own it takes."""
    head = "parameters:", "pictures:", "seen:", "error, learnt from:", "error, others:", "readable:", "copies:"
    yield "network", *head
    for row in read("own-counts"):
        errors = f"{row['error_known']:.3f}", f"{row['error_unseen']:.3f}"
        sizes = f"{row['parameters']:,}", f"{row['count']:,}", f"{row['images_seen']:,}"
        yield row["network"], *sizes, *errors, f"{row['readable']:.2f}", f"{row['copies']:.2f}"


@table
def tuning():
    """What it helps to begin with trained weights."""
    head = "seen:", "file:", "error:", "error on other cars:"
    yield "pictures", "begun", *head
    for row in read("own-tuning"):
        what = {"letters": "letters", "cars": "Jeeps"}[row["data"]]
        took = f"{row['images_seen']:,}", f"{row['bytes'] / 1000:,.0f} kB"
        errors = (f"{row[name]:.3f}" for name in ("error_unseen", "error_cars"))
        yield f"{row['count']} {what}", row["way"], *took, *errors


@table
def peers():
    yield "", "parameters:", "MACs:", "images/s:", "images seen:", "16 cars:", "memory:", "KID × 1000:"
    for row in read("peers-32-cpu"):
        if row["minutes"]:  # others are weights of the package, trained for longer
            size = f"{row['parameters'] / 1e6:.1f} M", f"{row['macs'] / 1e6:,.0f} M"
            pace = f"{row['images_per_second']:.0f}", f"{row['images_seen']:,}", f"{row['seconds_to_draw_16']:.1f} s"
            kid = f"{thousand(row['generated'])} ± {1000 * row['generated']['kid_std']:.0f}"
            yield row["peer"], *size, *pace, f"{row['peak_memory_mib']:,} MiB", kid


@table
def peers_longer():
    yield "", "parameters:", "MACs:", "images seen:", "of training:", "KID × 1000:", "precision:", "recall:"
    for row in read("peers-32-cpu-longer"):
        size = f"{row['parameters'] / 1e6:.1f} M", f"{row['macs'] / 1e6:,.0f} M"
        took, found = f"{row['seconds'] / 60:.0f} min", row["generated"]
        kid = f"{thousand(found)} ± {1000 * found['kid_std']:.0f}"
        variety = f"{found['precision']:.3f}", f"{found['recall']:.3f}"
        yield row["peer"], *size, f"{row['images_seen']:,}", took, kid, *variety


@table
def ladder_weights():
    times = (99, 499, 899)
    head = "parameters:", "million MACs:", "KID × 1000:", *(f"t = {t}:" for t in times)
    yield "weights", *head, "trained for:", "machine, date"
    for name in (name for name in pretrained.names() if name.startswith("cars32-")):
        card = pretrained.card(name)
        found = card[ERRORS]
        size = f"{card['parameters']:,}", f"{card['macs'] / 1e6:.1f}", thousand(card["generated"])
        made = f"{card['seconds'] / 60:.0f} min", f"{card['machine']}, {card['date']}"
        yield f"`{name}`", *size, *(f"{found[f't={t}']:.3f}" for t in times), *made


@table
def throughput():
    yield "network", "parameters:", "float32, images/s:", "of its products' rate:", "bfloat16, images/s:", "of theirs:"
    for name, row in read("throughput")["networks"].items():
        both = (row[precision]["training"] for precision in ("no", "bf16") if precision in row)
        rates = [cell for one in both for cell in (f"{one['images_per_second']:.0f}", f"{one['share']:.0%}")]
        yield f"`{name}`", f"{row['parameters']:,}", *rates


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
