"""Build what the pages in this folder need and what is not kept in the repository.

    pip install -e ".[docs]" && python site/build.py
    python -m http.server -d site          # then open http://localhost:8000

It makes index.html and models/ (the networks as ONNX), vendor/ (the ONNX runtime for browsers, by npm) and book/ (the
notebooks as pages).  Give some of these three as arguments to build only those.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import chapters
import jinja2

SITE = Path(__file__).resolve().parent
sys.path.insert(0, str(SITE.parent))  # works in a checkout, too, where the package is not installed
MANIFEST = json.loads((SITE / "manifest.json").read_text(encoding="utf-8"))


def page(folder: Path = SITE) -> None:
    """The page itself: its files, and index.html with the list of chapters."""
    template = jinja2.Environment(autoescape=True).from_string((SITE / "index.html.j2").read_text(encoding="utf-8"))
    index = template.render(chapters=chapters.contents(SITE.parent), url=chapters.repository(SITE.parent))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(f"{index}\n", encoding="utf-8")
    for name in MANIFEST["page"]:
        if name != "index.html" and folder != SITE:
            shutil.copy(SITE / name, folder)


def models(folder: Path) -> None:
    """The networks that the page draws with, as ONNX."""
    from diffusion_utils.commands.export import write_onnx

    for name in MANIFEST["models"]:
        write_onnx(name, folder)


def vendor(folder: Path) -> None:
    """The ONNX runtime for browsers, as package-lock.json pins it."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            "npm is missing, which fetches the ONNX runtime for browsers: install Node.js 20 or later"
        )
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]
    subprocess.run([npm, "ci", *quiet], cwd=SITE, check=True)
    new = folder.with_suffix(".new")  # becomes `folder` when it is complete
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for name in sum(MANIFEST["runtimes"].values(), []):
        shutil.copyfile(SITE / "node_modules/onnxruntime-web/dist" / name, new / name)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def book(folder: Path) -> None:
    """The notebooks as pages, with sliders that need no kernel."""
    from book import build

    build(folder)


def main(arguments: list[str] | None = None) -> None:
    parts = {"models": models, "vendor": vendor, "book": book}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; default: all")
    parser.add_argument("--out", type=Path, default=SITE, help="another folder, which receives all that is published")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.parts if name not in parts]:
        raise ValueError(f"unknown part {unknown[0]!r}: choose out of {', '.join(parts)}")
    page(given.out)
    for name in given.parts or parts:
        parts[name](given.out / name)
        print(f"{given.out / name} is built")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, ModuleNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
