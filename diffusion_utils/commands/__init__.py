"""The command line: `python -m diffusion_utils COMMAND …`, generated from the commands' own arguments.

A command is a function; its flags are its arguments, with help, types and choices from where they are
documented: the function's docstring, or the comments beside the fields of a dataclass.
"""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import fields, replace
from functools import partial, wraps
from inspect import getdoc
from pathlib import Path

import tyro

from diffusion_utils.checks import suggestions
from diffusion_utils.commands.download import download
from diffusion_utils.commands.evaluate import evaluate
from diffusion_utils.commands.export import export
from diffusion_utils.commands.figures import figures
from diffusion_utils.commands.sample import sample
from diffusion_utils.commands.train import OPEN, branched_run, stored_run, train
from diffusion_utils.pipeline import Drawing
from diffusion_utils.pretrained import NEEDED
from diffusion_utils.training import Run

COMMANDS = {f.__name__: f for f in (train, sample, evaluate, figures, export, download)}
ABOUT = "Diffusion models: train them, draw with them, measure them."
PROGRAM = "python -m diffusion_utils"
# Options of drawing as errors of the library name them; who types flags is told flags.
FLAGS = re.compile(rf"(?<![\w-])({'|'.join(option.name for option in fields(Drawing) if '_' in option.name)})\b")
TYPES = tyro.constructors.ConstructorRegistry()


@TYPES.primitive_rule
def _json(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """A dict is given as JSON."""
    if info.type is not dict:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=_dict_from_json,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    )


def _dict_from_json(words: list[str]) -> dict:
    """What a word says; tyro shows only that it failed, `one_sentence` what would do."""
    value = json.loads(words[0])
    if not isinstance(value, dict):
        raise ValueError("no dict")
    return value


def main(arguments: list[str]) -> int:
    """Run a command; an expected error becomes one sentence and the exit code 1, or 2 for one on the command line."""
    try:
        parse(arguments)()
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        named = getattr(error, "filename", None)  # of an error of the system, which calls itself [Errno 13]
        said = f"{named}: {error.strerror}" if named and error.strerror else str(error)
        print(f"error: {_with_flags(said)}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str]) -> Callable[[], None]:
    """The command that a command line asks for, with its arguments, ready to be called."""
    name, *rest = arguments = [*map(_at_home, arguments)] or ["--help"]
    cli = partial(tyro.cli, args=rest, prog=f"{PROGRAM} {name}", config=(tyro.conf.OmitArgPrefixes,), registry=TYPES)
    if name not in COMMANDS and not name.startswith("-"):
        print(f"error: unknown command {name!r}: choose one of {suggestions(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    with one_sentence():
        if name == "train":
            return partial(train, cli(Run, default=_default_run(rest), description=getdoc(train)))
        if name in COMMANDS:
            return cli(_postponed(COMMANDS[name]))
        return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog=PROGRAM, description=ABOUT, args=arguments)


def _at_home(word: str) -> str:
    """~/x and --flag=~/x with one's home folder, which not every shell puts there."""
    flag, path = re.fullmatch(r"(--[\w-]+=)?(.*)", word, re.DOTALL).groups(default="")
    return flag + os.path.expanduser(path) if path == "~" or path.startswith(("~/", "~\\")) else word


def _postponed(command: Callable) -> Callable:
    """A function with the same arguments that only notes them: while tyro calls it, an error is one of parsing."""

    @wraps(command)
    def note(*args, **options):
        return partial(command, *args, **options)

    return note


def _default_run(arguments: list[str]) -> Run:
    """What `train` starts from where nothing is said: the run that it resumes, or that it branches off from."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    pairs = [*zip(words, words[1:])]
    out = next((Path(value) for flag, value in pairs if flag == "--out"), None)
    if ("--out", "") in pairs:
        raise ValueError("--out is empty: give the folder of the run, or . for this one")
    if "--resume" in words and out and (out / "run.json").is_file():
        return stored_run(out)
    if branch := next((Path(value) for flag, value in pairs if flag == "--branch" and value), None):
        return replace(branched_run(branch), out=tyro.MISSING)
    if any(flag == "--start" and value for flag, value in pairs):
        said = {word.replace("_", "-").replace("--no-", "--") for word in words if word.startswith("--")}
        for name in (name.replace("_", "-") for name in NEEDED if f"--{name.replace('_', '-')}" in said):
            raise ValueError(f"--start brings its own {name.replace('-', '_')}: leave --{name} out")
    return Run(out=tyro.MISSING, config=OPEN)


def _with_flags(said: str) -> str:
    """An error of the library in the words of a command line."""
    return FLAGS.sub(lambda name: "--" + name[0].replace("_", "-"), said)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn the box in which tyro says what is wrong with a command line into a sentence."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            yield
    except SystemExit as stop:
        if stop.code:
            # The first line is the box's title; where the terminal has no Unicode, it is drawn with +, - and |.
            lines = [line.strip("│| ") for line in box.getvalue().splitlines()[1:]]
            parts = re.split(" ?(?:─|-){3,} ", " ".join(line for line in lines if line and line[0] not in "╰+"))
            said = " ".join(part for part in parts if not part.startswith(("For full helptext", "Argument helptext")))
            said = re.sub(r"^ *Error parsing [\w.-]*(config|drawing|dummy-inner__|Run): | Got errors:.*", "", said)
            unfit = r"Error parsing (\S+): no type .*?([A-Z][A-Z ]*)}? could be .* from \[(.*)\]\."
            said = re.sub(unfit, r"\1 takes \2, not \3", said)
            said = said.replace(" takes JSON, not ", """ takes JSON such as '{"name": "resnet", "stem": 4}', not """)
            # tyro has these in a set, which has another order every time
            said = re.sub(
                r"(?<=Expected one of )\((.*?)\)", lambda found: ", ".join(sorted(found[1].split(", "))), said
            )
            said = re.sub(r"Error parsing (\S+): invalid literal for int.*: ", r"\1 takes INT, not ", said)
            said = _with_flags(said.strip().replace("{None}|", ""))
            print(f"error: {said} (--help lists what there is)", file=sys.stderr)
        raise
