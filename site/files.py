"""What is written here: the book's pictures, made small and measured."""

import io
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image


def put(path: Path, data: bytes) -> None:
    """Write a file, and the folder for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def put_jpeg(path: Path, picture: Image.Image, **options) -> None:
    """Write a picture as JPEG."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", **options)
    put(path, buffer.getvalue())


def thumbnail(source: Path, folder: Path) -> str:
    """Write a small copy of a picture, of an SVG a whole one, into a folder; its address there."""
    if source.suffix == ".svg":
        put(folder / "images" / source.name, source.read_bytes())
        return f"images/{source.name}"
    with Image.open(source) as picture:
        small = picture.convert("RGB")
    small.thumbnail((480, 480))
    put_jpeg(folder / "images/small" / f"{source.stem}.jpg", small, quality=85)
    return f"images/small/{source.stem}.jpg"


def size(path: Path) -> tuple[int, int]:
    """Width and height of a picture in CSS pixels."""
    if path.suffix == ".svg":
        root = ElementTree.parse(path).getroot()
        return tuple(round(float(root.get(side).removesuffix("pt")) * 4 / 3) for side in ("width", "height"))
    with Image.open(path) as picture:
        return picture.size
