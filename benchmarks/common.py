"""What the benchmarks share: results that are kept, rows that are measured once, errors in one sentence.

A benchmark is a dataclass: its fields are the options of its command, and calling it measures.  Its results are
written row by row, and rows that are there already are not measured again, so a command may be interrupted.
"""

import json
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path

import tyro
from torch import Tensor

from diffusion_utils import pretrained
from diffusion_utils.commands import one_sentence
from diffusion_utils.files import write_json
from diffusion_utils.pipeline import DEFAULT

RESULTS = Path(__file__).parent / "results"


class Results:
    """The rows of a JSON file: all that it holds, or one entry of its `document`."""

    def __init__(self, path: Path, empty: list | dict | None = None, entry: str | None = None):
        self.path, self.entry = path, entry
        self.document: list | dict = [] if empty is None else empty
        self.read()

    def read(self) -> None:
        """What the file holds by now: another command may have measured, too."""
        if self.path.exists():
            self.document = json.loads(self.path.read_bytes())

    @property
    def rows(self) -> list:
        return self.document if self.entry is None else self.document[self.entry]

    def find(self, settings: dict) -> dict | None:
        """The row with these settings; what rows of earlier versions leave out was as in `DEFAULT`."""
        settings, default = json.loads(json.dumps(settings)), asdict(DEFAULT)  # tuples are lists in files
        matches = (r for r in self.rows if all(r.get(key, default.get(key)) == settings[key] for key in settings))
        return next(matches, None)

    def add(self, row: dict, instead_of: dict | None = None) -> None:
        self.read()
        if instead_of in self.rows:
            self.rows.remove(instead_of)
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        write_json(self.path, self.document)


def measure(
    results: Results, title: str, settings: dict, draw: Callable, prepare: Callable[[], Callable], **facts
) -> None:
    """Draw, score and add a row, unless there is one with these settings.

    Args:
        title: of the line that is printed.
        draw: returns the pictures.
        prepare: returns a function from pictures to scores; what can go wrong goes wrong before the drawing.
        facts: of the row, besides its settings and scores.
    """
    if results.find(settings):
        return
    score, started = prepare(), time.perf_counter()
    pictures: Tensor = draw()
    seconds = {"seconds_of_drawing": round(time.perf_counter() - started, 1)}
    row = {**settings, **facts, **seconds, **pretrained.machine(), **score(pictures)}
    results.add(row)
    shown = {key: row[key] for key in ("seen", "held_out", "colour", "vivid colour", "body", "all") if key in row}
    if "generated" in row:
        shown |= {"KID × 1000": round(1000 * row["generated"]["kid"], 1)}
    print(f"{title}: {shown}", flush=True)


def chosen(what: str, names: Collection[str], choices: Collection[str]) -> list[str]:
    """The names, all choices where none is given.

    Raises:
        ValueError: an unknown name.
    """
    unknown = [name for name in names if name not in choices]
    if unknown:
        raise ValueError(f"no {what} named {unknown[0]!r}: choose out of {', '.join(choices)}")
    return list(names or choices)


def name_of(weights: str | Path) -> str:
    """Of shipped weights their own; of a run's weights or snapshots that of its folder."""
    path = Path(weights)
    if path.parent.name == "snapshots":
        return path.parent.parent.name
    return path.parent.name if path.stem == "weights" else path.stem


def by_name(weights: Collection[str]) -> dict[str, str]:
    """Weights by their names; a folder stands for the weights.safetensors in it.

    Raises:
        ValueError: two have one name, or draw pictures of different sizes.
    """
    paths = [str(Path(path) / "weights.safetensors") if Path(path).is_dir() else path for path in weights]
    named = {name_of(path): path for path in paths}
    if len(named) < len(paths) or len({pretrained.card(path)["size"] for path in paths}) > 1:
        raise ValueError("weights are kept by name and drawn at one size: give different names, and one size")
    return named


def command(benchmarks: type | dict[str, type], description: str) -> Callable[..., None]:
    """`main(arguments)` of a script: it runs the benchmark that a command line asks for, one or by name one of several;
    without arguments that of the process, and then an expected error becomes one sentence."""
    cli = tyro.extras.subcommand_cli_from_dict if isinstance(benchmarks, dict) else tyro.cli

    def main(arguments: list[str] | None = None) -> None:
        try:
            with one_sentence():
                asked = cli(benchmarks, args=arguments, description=description, config=(tyro.conf.OmitArgPrefixes,))
            asked()
        except (ValueError, OSError, FloatingPointError, ImportError) as error:
            if arguments is not None:
                raise
            lacking = "; pip install denoising-diffusion-pytorch smalldiffusion diffusers"
            sys.exit(f"error: {error}{lacking if isinstance(error, ModuleNotFoundError) else ''}")

    return main
