"""The notebooks as a book: pages to read in any browser, without a kernel and without network.

Stored outputs stand on the pages as they are.  Only the widgets run: a slider's frames, and a table of what a prompt
box draws, are made in advance by the cells that the widget needs, so that both work without Python.
"""

from collections.abc import Container
from pathlib import Path

import jinja2
from bs4 import BeautifulSoup
from chapters import contents, repository
from convert import Exporter, cells, html, math_font, read
from files import put, size, thumbnail
from frames import figures
from links import LIVE, Links
from markupsafe import Markup
from pygments.formatters import HtmlFormatter

from diffusion_utils.files import replaced

HERE = Path(__file__).resolve().parent


def build(folder: Path, with_frames: Container[str] | None = None, root: Path = HERE.parent) -> None:
    """Write the book into `folder`; what stood there stays until the new book is complete.

    Args:
        folder: is made; if it holds files, they must be those of a book.
        with_frames: names of the notebooks whose widgets' frames are made; default: all.
        root: of the repository: notebooks/, images/, README.md, pyproject.toml.

    Raises:
        ValueError: something in a notebook, the README or `folder` is not as it should be; says what.
    """
    folder = Path(folder).resolve()
    # Only a book has the font; this folder here has the rest, too.
    if folder.exists() and not (folder / "math.woff").exists() and (folder.is_file() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something that is no book: move it away, or name another folder")
    with replaced(folder) as new:
        _write(new, with_frames, root)


def _write(folder: Path, with_frames: Container[str] | None, root: Path) -> None:
    """All files of the book."""
    loader, options = jinja2.FileSystemLoader(HERE / "book_templates"), {"trim_blocks": True, "lstrip_blocks": True}
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, **options)
    templates.globals |= {"url": repository(root), "live": LIVE}
    exporter, formulas, pages = Exporter(), [], []
    names = [chapter.name for chapter in contents(root)]
    for chapter in contents(root):
        path = root / "notebooks" / f"{chapter.name}.ipynb"
        notebook = read(path)
        for place, values in figures(path, folder, with_frames is None or chapter.name in with_frames):
            notebook.cells[place].metadata["figure"] = templates.get_template("widget.html.j2").render(values)
        soup = cells(notebook, path, exporter, folder)
        Links(path, root, folder, templates.globals["url"], names).mend(soup)
        formulas += [each.get_text() for each in soup.find_all("math")]
        small = thumbnail(root / chapter.picture, folder)
        values = {"takeaway": Markup(html(chapter.takeaway)), "small": small, "size": size(folder / small)}
        pages.append(vars(chapter) | outline(soup, path, chapter.title) | values)

    sheets = [(HERE / "book.css").read_text(encoding="utf-8"), colours("light", "default")]
    put(folder / "book.css", "\n".join([*sheets, colours("dark", "github-dark")]).encode())
    put(folder / "book.js", (HERE / "book.js").read_bytes())
    put(folder / "math.woff", math_font("".join(formulas)))
    index = templates.get_template("index.html.j2").render(chapters=pages, chapter=None)
    put(folder / "index.html", index.encode())
    for before, page, after in zip([None, *pages], pages, [*pages[1:], None]):
        around = {"before": before, "chapter": page, "after": after}
        text = templates.get_template("chapter.html.j2").render(around, chapters=pages)
        put(folder / f"{page['name']}.html", text.encode())


def outline(soup: BeautifulSoup, path: Path, title: str) -> dict:
    """A page's sections as (id, title), and its HTML."""
    heading = soup.find("h1")
    if heading is None or heading.get_text()[:-1] != title:
        raise ValueError(f"{path.name}: no title, a line '# {title}', as the README's table has it")
    sections = [(each["id"], each.get_text()[:-1]) for each in soup.find_all("h2")]  # without the sign that links there
    return {"sections": sections, "html": Markup(soup)}


def colours(scheme: str, style: str) -> str:
    """CSS that gives code the colours of a style of Pygments, on light or dark pages."""
    rules = HtmlFormatter(style=style).get_token_style_defs(".highlight")
    return "\n".join([f"@media (prefers-color-scheme: {scheme}) {{", *rules, "}\n"])
