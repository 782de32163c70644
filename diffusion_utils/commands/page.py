"""The page that draws in a browser: what is the same around every network, and a page around one's own.

The files lie in `diffusion_utils/page`.  The ONNX runtime for browsers is fetched from npm's registry once, and kept in
the cache folder; from then on, and for whoever opens the page, no network is needed.
"""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from html import escape
from pathlib import Path
from string import Template

from diffusion_utils.files import cache_folder, replaced

FOLDER = Path(__file__).parents[1] / "page"
RUNTIME, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # in base 64
REGISTRY = "npm_config_registry"  # npm's own variable for another registry


def manifest(models: list[str] | None = None, more: list[str] | None = None) -> dict:
    """What a page consists of: its files ("page"), its networks ("models"), the runtime's files by kind ("runtimes").

    Args:
        models: names of networks in place of the one that an own page has.
        more: names of further files of the page.
    """
    contents = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    return contents | {"page": contents["page"] + (more or []), "models": models or contents["models"]}


def fill(folder: Path, index: str, contents: dict) -> None:
    """Write a page's files but for its networks and the runtime.

    Args:
        index: what index.html holds.
        contents: its `manifest`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.iterdir():
        if path.name in contents["page"]:
            shutil.copyfile(path, folder / path.name)
    (folder / "manifest.json").write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    (folder / "index.html").write_text(index, encoding="utf-8")


def own_index(title: str, about: dict) -> str:
    """The index.html of a page around one network.

    Args:
        title: in plain text.
        about: what `export.description` says of the network.
    """
    data = re.sub(r"^own pictures, (\d+) cropped to", r"\1 pictures of", about.get("data") or "pictures")
    words = {
        "title": title,
        "parameters": f"{about['parameters']:,}",
        "data": data,
        "licence": about.get("licence") or "that of the pictures",
        "scale": f"{max(1, about['guidance_scale']):g}",
        "most": f"{max(6, about['guidance_scale']):g}",
        "steps": about["steps"],
        "least_steps": min(2, about["steps"]),
        "most_steps": max(50, about["steps"]),
        "with_classes": "" if about.get("conditions") else "hidden",
        "with_words": "" if about.get("words") else "hidden",
        "guided": "" if about["guided"] else "hidden",
    }
    template = Template((FOLDER / "own.html").read_text(encoding="utf-8"))
    return template.substitute({name: escape(str(word)) for name, word in words.items()})


def copy_runtime(folder: Path) -> None:
    """Put the ONNX runtime for browsers into a folder, whole or not at all.

    Raises:
        OSError: it is not in the cache, and could not be fetched; says what to do.
    """
    names = sum(manifest()["runtimes"].values(), [])
    kept = cache_folder() / f"{RUNTIME}-{VERSION}"
    if not all((kept / name).is_file() for name in names):
        archive = _fetched()
        if base64.b64encode(hashlib.sha512(archive).digest()).decode() != SHA512:
            raise OSError(f"what came as {RUNTIME} {VERSION} is another file, or damaged: try again later")
        with replaced(kept) as new, tarfile.open(fileobj=io.BytesIO(archive)) as files:
            for name in names:
                (new / name).write_bytes(files.extractfile(f"package/dist/{name}").read())
    with replaced(folder) as new:
        for name in names:
            shutil.copyfile(kept / name, new / name)


def _fetched() -> bytes:
    """The runtime's archive, by npm or, where there is none, from npm's registry."""
    npm = shutil.which("npm")
    try:
        if npm:
            with tempfile.TemporaryDirectory() as folder:
                command = [npm, "pack", "--silent", "--pack-destination", folder, f"{RUNTIME}@{VERSION}"]
                subprocess.run(command, check=True, capture_output=True)
                return next(Path(folder).iterdir()).read_bytes()
        registry = os.environ.get(REGISTRY, "https://registry.npmjs.org").rstrip("/")
        with urllib.request.urlopen(f"{registry}/{RUNTIME}/-/{RUNTIME}-{VERSION}.tgz", timeout=120) as answer:
            return answer.read()
    except (OSError, ValueError, StopIteration, subprocess.CalledProcessError) as error:
        raise OSError(
            f"the ONNX runtime for browsers could not be fetched ({error}): it takes network, this once; connect, and "
            "give the same command again"
        ) from None
