"""The one list of chapters, for the page and the book: the README's table of notebooks."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Chapter:
    """A notebook: its file's name without .ipynb, its title, a picture (path in the repository), and a text."""

    name: str
    title: str
    picture: str
    alt: str
    takeaway: str  # Markdown


def contents(root: Path) -> list[Chapter]:
    """The notebooks of a repository in order."""
    lines = (root / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    column = next((row.index("what you take away") for row in rows if "what you take away" in row), None)
    chapters = []
    for row in rows:
        link = re.search(r"\[([^\[\]]+)\]\(notebooks/(\w+)\.ipynb\)", " ".join(row))
        picture = re.search(r"!\[(.+?)\]\((images/\w+\.\w+)\)", " ".join(row))
        if column is not None and link and picture:
            chapters.append(Chapter(link[2], link[1], picture[2], picture[1], row[column]))
    stored = sorted(path.stem for path in (root / "notebooks").glob("*.ipynb"))
    if [chapter.name for chapter in chapters] != stored:
        raise ValueError(
            f"README.md: its table of notebooks has to name {', '.join(stored)}, in this order, "
            "each with a picture, and to have a column 'what you take away'"
        )
    return chapters


def repository(root: Path) -> str:
    """Address of the repository, without a slash at its end."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].rstrip("/")
