"""Build what the pages in this folder need and what is not kept in the repository.

    pip install -e ".[docs]" && python site/build.py
    python -m http.server -d site          # then open http://localhost:8000

It makes index.html with what the package has for such pages, models/ (the networks as ONNX), vendor/ (the ONNX runtime
for browsers) and book/ (the notebooks as pages).  Give some of the last three as arguments to build only those, and
index.html.
"""

import argparse
import functools
import shutil
import sys
from pathlib import Path

import chapters
import jinja2

SITE = Path(__file__).resolve().parent
sys.path.insert(0, str(SITE.parent))  # works in a checkout, too, where the package is not installed
from diffusion_utils.commands import page as pages  # noqa: E402

MANIFEST = pages.manifest(["stanford-cars-1m", "stanford-cars-text"], ["field.js"])


def page(folder: Path = SITE) -> None:
    """The page itself: its files, and index.html with the list of chapters."""
    template = jinja2.Environment(autoescape=True).from_string((SITE / "index.html.j2").read_text(encoding="utf-8"))
    index = template.render(chapters=chapters.contents(SITE.parent), url=chapters.repository(SITE.parent))
    folder.mkdir(parents=True, exist_ok=True)
    pages.fill(folder, f"{index}\n", MANIFEST)
    if folder != SITE:
        shutil.copy(SITE / "field.js", folder)


def models(folder: Path) -> None:
    """The networks that the page draws with, as ONNX."""
    from diffusion_utils.commands.export import write_onnx

    for name in MANIFEST["models"]:
        write_onnx(name, folder)


def vendor(folder: Path) -> None:
    """The ONNX runtime for browsers, of the version that the package pins."""
    pages.copy_runtime(folder)


def book(folder: Path, **options) -> None:
    """The notebooks as pages, with sliders that need no kernel."""
    from book import build

    build(folder, **options)


def main(arguments: list[str] | None = None) -> None:
    parts = {"models": models, "vendor": vendor, "book": book}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; default: all")
    parser.add_argument("--out", type=Path, default=SITE, help="another folder, which receives all that is published")
    parser.add_argument("--without-widgets", action="store_true", help="a note in their place: a book in seconds")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.parts if name not in parts]:
        parser.error(f"unknown part {unknown[0]!r}: choose out of {', '.join(parts)}")
    if given.without_widgets:
        parts["book"] = functools.partial(book, with_frames=())
    out = given.out.resolve()
    try:
        there = {path.name for path in out.iterdir()} if out.exists() else set()
        if there and out != SITE and not {"manifest.json", "sw.js"} <= there:
            raise ValueError(f"{out} holds something that is no such page: move it away, or name another folder")
        page(out)
        for name in given.parts or parts:
            parts[name](out / name)
            print(f"{out / name} is built")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
