"""Build what the pages in this folder need and what is not kept in the repository.

    pip install -e ".[docs]" && python docs/build.py
    python -m http.server -d docs          # then open http://localhost:8000

It makes models/ (the networks as ONNX), vendor/ (the ONNX runtime for browsers, by npm) and book/ (the notebooks as
pages).  Give some of these three as arguments to build only those.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))  # works in a checkout, too, where the package is not installed
NETWORKS = ("stanford-cars-1m", "stanford-cars-text")
RUNTIME = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",  # WebAssembly
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",  # WebGPU
)


def models(folder: Path = FOLDER / "models") -> None:
    """The networks that the page draws with, as ONNX."""
    from diffusion_utils.commands.export import write_onnx

    for name in NETWORKS:
        write_onnx(name, folder)


def vendor(folder: Path = FOLDER / "vendor") -> None:
    """The ONNX runtime for browsers, as package-lock.json pins it."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            "npm is missing, which fetches the ONNX runtime for browsers: install Node.js 20 or later"
        )
    subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"], cwd=FOLDER, check=True
    )
    package = FOLDER / "node_modules" / "onnxruntime-web"
    new = folder.with_suffix(".new")  # becomes `folder` when it is complete
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for name in RUNTIME:
        shutil.copyfile(package / "dist" / name, new / name)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def book(folder: Path = FOLDER / "book") -> None:
    """The notebooks as pages, with sliders that need no kernel."""
    sys.path.append(str(FOLDER))
    from book import build

    build(folder)


def main(arguments: list[str] | None = None) -> None:
    parts = {"models": models, "vendor": vendor, "book": book}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; default: all")
    asked = parser.parse_args(arguments).parts or list(parts)
    if unknown := [name for name in asked if name not in parts]:
        raise ValueError(f"unknown part {unknown[0]!r}: choose out of {', '.join(parts)}")
    for name in asked:
        parts[name]()
        print(f"docs/{name}/ is built")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, ModuleNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
