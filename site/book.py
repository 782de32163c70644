"""The notebooks as a book: pages to read in any browser, without a kernel and without network.

    python site/book.py                      # writes site/book/, in about a minute
    python site/book.py --without-widgets    # in seconds, without the frames of the sliders

Stored outputs are shown as they are.  Only the widgets run: a slider's frames, and a table of what a prompt
box draws, are made in advance by the cells that the widget needs, so that both work without Python.
"""

import argparse
import ast
import contextlib
import importlib.metadata
import io
import re
import sys
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import ipywidgets
import jinja2
import math_core
import matplotlib
import nbformat
import torch
from bs4 import BeautifulSoup
from chapters import contents, repository
from fontTools import subset
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from pygments.formatters import HtmlFormatter
from widget_cells import widget_cells

HERE = Path(__file__).resolve().parent
LIVE = "../index.html"  # the page that draws cars in the browser, beside the book's folder
STOPS = 41  # frames of a slider that has more values than that
SCALES = (1, 3, 5)  # guidance scales of a prompt box's table


def build(folder: Path, drawn: Container[str] | None = None, root: Path = HERE.parent) -> None:
    """Write the book into `folder`; what stood there stays until the new book is complete.

    Args:
        folder: is made; if it holds files, they must be those of a book.
        drawn: names of the notebooks whose widgets' frames are made; default: all.
        root: of the repository: notebooks/, images/, README.md, pyproject.toml.

    Raises:
        ValueError: something in a notebook, the README or `folder` is not as it should be; says what.
    """
    folder = Path(folder).resolve()
    # Only a book has the font; this folder here has the rest, too.
    if folder.exists() and not (folder / "math.woff").exists() and (folder.is_file() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something that is no book: move it away, or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".book-", dir=folder.parent) as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        _write(new, drawn, root)
        if folder.exists():
            folder.rename(Path(temporary, "old"))
        new.rename(folder)


def _write(folder: Path, drawn: Container[str] | None, root: Path) -> None:
    """All files of the book."""
    chapters = [vars(each) | {"takeaway": Markup(html(each.takeaway))} for each in contents(root)]
    url = repository(root)
    loader = jinja2.FileSystemLoader(HERE / "book_templates")
    templates = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    exporter, formulas = Exporter(), []
    for chapter in chapters:
        path = root / "notebooks" / f"{chapter['name']}.ipynb"
        notebook = read(path)
        for place, widget in widgets(path, folder, drawn is None or path.stem in drawn):
            figure = templates.get_template("widget.html.j2").render(live=LIVE, **widget)
            notebook.cells[place].metadata["figure"] = figure
        soup = convert(notebook, path, exporter, folder)
        mend(soup, path, root, folder, url, [each["name"] for each in chapters])
        chapter |= outline(soup, path, chapter["title"])
        formulas += [each.get_text() for each in soup.find_all("math")]
        chapter["small"] = thumbnail(root / chapter["picture"], folder)
        chapter["width"], chapter["height"] = size(folder / chapter["small"])

    sheets = [(HERE / "book.css").read_text(encoding="utf-8"), colours("light"), colours("dark")]
    put(folder / "book.css", "\n".join(sheets).encode())
    put(folder / "book.js", (HERE / "book.js").read_bytes())
    put(folder / "math.woff", math_font("".join(formulas)))
    common = {"chapters": chapters, "url": url, "live": LIVE}
    for before, chapter, after in zip([None, *chapters], chapters, [*chapters[1:], None]):
        around = {"before": before, "chapter": chapter, "after": after}
        page = templates.get_template("chapter.html.j2").render(**around, **common)
        put(folder / f"{chapter['name']}.html", page.encode())
    index = templates.get_template("index.html.j2").render(chapter=None, **common)
    put(folder / "index.html", index.encode())


def convert(notebook: nbformat.NotebookNode, path: Path, exporter: HTMLExporter, out: Path) -> BeautifulSoup:
    """A notebook's cells as HTML; the pictures among its outputs become files."""
    # Only Colab needs the cell that fetches the package there.
    notebook.cells = [cell for cell in notebook.cells if "google.colab" not in cell.source]
    resources = {"unique_key": path.stem, "output_files_dir": "pictures"}
    try:
        describe_pictures(notebook)
        cells, resources = exporter.from_notebook_node(notebook, resources)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    for name, data in resources["outputs"].items():
        put(out / name, data)
    return BeautifulSoup(cells, "html.parser")


def put(path: Path, data: bytes) -> None:
    """Write a file, and the folder for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises many kinds
        raise ValueError(f"{path.name} is no notebook: {str(error).splitlines()[0]}") from error
    return notebook


def html(markdown: str) -> str:
    """Markdown as HTML, its formulas as MathML."""
    return MarkdownWithMath(renderer=Renderer(escape=False, anchor_link_text="#")).render(markdown)


class Renderer(IPythonRenderer):
    """Markdown whose formulas are MathML, which browsers draw by themselves."""

    def block_math(self, body: str) -> str:
        return f'<div class="formula">{mathml(body, block=True)}</div>'

    def inline_math(self, body: str) -> str:
        return mathml(body, block=False)


class Exporter(HTMLExporter):
    """nbconvert's exporter with this folder's template; the result is the inside of a page."""

    def __init__(self):
        template = str(HERE / "book_templates" / "cells.html.j2")
        kinds = ["image/png", "text/html", "text/markdown", "text/plain"]
        super().__init__(
            template_name="basic",
            template_file=template,
            config={"ExtractOutputPreprocessor": {"enabled": True}, "NbConvertBase": {"display_data_priority": kinds}},
        )

    @jinja2.pass_context
    def markdown2html(self, context, source: str) -> str:
        return html(source)


def mathml(formula: str, block: bool) -> str:
    """A TeX formula as MathML."""
    # \bigl and \bigr would do, too, but Chromium does not enlarge a bracket that carries an exponent.
    formula = formula.replace(r"\bigl", r"\left").replace(r"\bigr", r"\right")
    converter = math_core.LatexToMathML(fancy_error=False)
    try:
        return converter.convert_with_local_state(formula, displaystyle=block)
    except math_core.LatexError as error:
        raise ValueError(f"a formula that cannot be converted, {formula}: {error}") from error


def math_font(text: str) -> bytes:
    """A font that has what these formulas need, large brackets, too: not every device has one."""
    whole = importlib.metadata.distribution("ziamath").locate_file("ziamath/fonts/STIXTwoMath-Regular.ttf")
    options = subset.Options(flavor="woff", name_IDs=["*"])  # its licence stands among the names
    font = subset.load_font(str(whole), options)
    subsetter = subset.Subsetter(options)
    # MathML draws a single letter from the italic ones, and a root with a sign of its own.
    subsetter.populate(text=text + "√ℎ", unicodes=[*range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)])
    subsetter.subset(font)
    buffer = io.BytesIO()
    subset.save_font(font, buffer, options)
    return buffer.getvalue()


def describe_pictures(notebook: nbformat.NotebookNode) -> None:
    """Give each picture among the outputs an alt text, where its metadata have none, from the text before."""
    said = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            said = sentence(cell.source)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = f"Output of the code above: {said}".rstrip(":,")
                output.metadata.setdefault("image/png", {}).setdefault("alt", alt)


def sentence(markdown: str) -> str:
    """The sentence of a text that fits best to a picture after it, without markup, at most 120 characters.

    That is its last one if it ends with a colon, and else the first of its last section; but no question, and
    none with a formula.
    """
    soup = BeautifulSoup(html(markdown), "html.parser")
    for each in soup.select(".anchor-link"):
        each.decompose()
    for each in soup.find_all("math"):
        each.replace_with("$")  # read as text, a formula is garbled
    headings = soup.find_all(re.compile("^h[1-6]$"))
    after = headings[-1].find_all_next("p") if headings else soup.find_all("p")
    parts = [part for each in after for part in re.split(r"(?<=[.?!])(?<!eq\.)(?<!al\.)\s+", each.get_text())]
    told = [part for part in parts if not part.endswith("?") and "$" not in part]
    told = told or [each.get_text() for each in headings[-1:]] or [""]
    # A colon before a list leads to that, not to the picture.
    leads = told[-1].endswith(":") and after and not after[-1].find_next_sibling()
    chosen = " ".join(told[-1 if leads else 0].split())
    return chosen if len(chosen) <= 120 else chosen[:119].rsplit(" ", 1)[0] + "…"


def widgets(path: Path, folder: Path, drawn: bool) -> Iterator[tuple[int, dict]]:
    """For every cell of a notebook that shows a widget: its place, and what the template needs.

    Args:
        path: of the notebook.
        folder: of the book; pictures go to its frames/.
        drawn: False for a note in the widget's place.
    """
    for number, (place, sources) in enumerate(widget_cells(path), 1):
        if not drawn:
            yield place, {"frames": []}
            continue
        box, space = run(path, sources)
        first, label, image = box.children
        controls, moves = prompts(first, space, path) if isinstance(first, ipywidgets.VBox) else stops(first)
        frames = []
        for k in moves:
            name = f"frames/{path.stem}-{number}/{k:02}.jpg"
            height, width = store(image.value, folder / name)
            words = re.sub(r"\s+·\s+", ", ", BeautifulSoup(label.value, "html.parser").get_text())
            frames.append([name, label.value, f"The pictures: {words}"])
        frames.sort()  # by their numbers
        wide = int(image.layout.width.removesuffix("px"))
        start = frames[sum(control["start"] * control["stride"] for control in controls)]
        yield (
            place,
            {
                "frames": frames,
                "controls": controls,
                "start": start,
                "width": wide,
                "height": round(wide * height / width),
            },
        )


def store(png: bytes, path: Path) -> tuple[int, int]:
    """Write a frame, small; its height and width."""
    with Image.open(io.BytesIO(png)) as picture:
        buffer = io.BytesIO()
        # Not WebP: it halves the resolution of colours, and noise would turn grey.
        picture.convert("RGB").save(buffer, "JPEG", quality=90, subsampling=0)
        put(path, buffer.getvalue())
        return picture.height, picture.width


def run(path: Path, sources: list[str]) -> tuple[ipywidgets.VBox, dict]:
    """The widget that the last of these cells shows, and the names the cells have defined."""
    space, box = {}, None
    matplotlib.use("Agg")
    with contextlib.chdir(path.parent), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        for source in sources:
            tree = ast.parse(source)
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            try:
                exec(compile(tree, path.name, "exec"), space)  # our own notebooks' code
                box = eval(compile(ast.Expression(last.value), path.name, "eval"), space) if last else None
            except Exception as error:
                raise ValueError(f"{path.name}: the cells of its widget fail: {error!r}") from error
    if not isinstance(box, ipywidgets.VBox):
        raise ValueError(f"{path.name}: a cell that calls a widget has to show it, in its last line")
    return box, space


def stops(control: ipywidgets.Widget) -> tuple[list[dict], Iterator[int]]:
    """A slider as the template wants it, and an iterator that moves it from stop to stop.

    Args:
        control: an IntSlider, or a scrubber's HBox of Play and IntSlider.
    """
    steps = isinstance(control, ipywidgets.HBox)  # of a walk: every one counts
    slider = control.children[1] if steps else control
    last = slider.max if steps else min(STOPS - 1, slider.max)

    def moves():
        for k in range(last + 1):
            slider.value = round(slider.max * k / max(last, 1))
            yield k

    start = last // 2 if steps else last // 4  # where cars and noise are both to be seen
    return [{"name": slider.description, "max": last, "start": start, "stride": 1}], moves()


def prompts(controls: ipywidgets.VBox, space: dict, path: Path) -> tuple[list[dict], Iterator[int]]:
    """A prompt box's choices as the template wants them, and an iterator that draws each.

    Args:
        controls: Text, FloatSlider and BoundedIntText.
        space: the notebook's names, PROMPTS among them.
        path: of the notebook.
    """
    text, slider, _ = controls.children
    wishes = space.get("PROMPTS", [])
    if text.value not in wishes:
        raise ValueError(
            f"{path.name}: a prompt box needs a list PROMPTS of what to draw in advance, its own prompt among them"
        )

    def moves():
        for i, scale in enumerate(SCALES):
            slider.value = scale
            for j in range(len(wishes))[:: (-1) ** i]:  # to and fro: each change costs a drawing
                text.value = wishes[j]
                yield i * len(wishes) + j

    wish = {"name": text.description, "options": wishes, "start": wishes.index(text.value), "stride": 1}
    scale = {"name": slider.description, "options": SCALES, "start": SCALES.index(3), "stride": len(wishes)}
    return [wish, scale], moves()


def mend(soup: BeautifulSoup, path: Path, root: Path, folder: Path, url: str, names: list[str]) -> None:
    """Links, pictures and wide things of a notebook's page.

    Args:
        soup: is changed.
        path: of the notebook.
        root, folder: of the repository and of the book.
        url: of the repository.
        names: of all notebooks.
    """
    for image in soup.find_all("img"):
        if urlsplit(image["src"]).netloc:  # a badge: its words will do
            image.replace_with(image["alt"])
            continue
        if image["src"].startswith("../images/"):
            source = inside(path, image["src"], root)
            image["src"] = source.relative_to(root).as_posix()
            put(folder / image["src"], source.read_bytes())
        if not image.get("alt"):
            raise ValueError(f"{path.name}: a picture without alt text, {image['src']}")
        if not image.get("width"):
            image["width"], image["height"] = size(folder / image["src"])
        image["loading"] = "lazy"
    for anchor in soup.find_all("a", href=True):
        if "anchor-link" in anchor.get("class", []):
            anchor.parent["id"] = unquote(anchor.parent["id"])  # nbconvert writes %C2%B7 for ·
            anchor["href"] = f"#{anchor.parent['id']}"
            anchor["aria-label"] = f"Link to the section “{anchor.parent.get_text()[:-1]}”"
        elif not urlsplit(anchor["href"]).scheme and not anchor["href"].startswith(("#", LIVE)):
            anchor["href"] = target(anchor["href"], path, root, url, names)
    for table in soup.find_all("table"):
        table.wrap(soup.new_tag("div", attrs={"class": "scroll"}))


def inside(path: Path, address: str, root: Path) -> Path:
    """The file or folder of the repository that an address in a notebook means."""
    file = (path.parent / unquote(urlsplit(address).path)).resolve()
    if not file.is_relative_to(root.resolve()) or not file.exists():
        raise ValueError(f"{path.name}: {address} leads to nothing in the repository")
    return root / file.relative_to(root.resolve())


def target(address: str, path: Path, root: Path, url: str, names: list[str]) -> str:
    """Where a relative link of a notebook leads in the book: to one of its pages, or to the repository."""
    file, _, anchor = address.partition("#")
    anchor = anchor and f"#{anchor}"
    found = inside(path, file, root)
    place = found.relative_to(root).as_posix()
    if found.suffix == ".ipynb" and found.stem in names:
        return f"{found.stem}.html{anchor}"
    if place == "README.md":  # its list of notebooks is the book's first page
        return "index.html" if anchor == "#the-notebooks" else f"{url}{anchor}"
    return f"{url}/{'tree' if found.is_dir() else 'blob'}/main/{place}{anchor}"


def size(path: Path) -> tuple[int, int]:
    """Width and height of a picture in CSS pixels."""
    if path.suffix == ".svg":
        root = ElementTree.parse(path).getroot()
        return tuple(round(float(root.get(side).removesuffix("pt")) * 4 / 3) for side in ("width", "height"))
    with Image.open(path) as picture:
        return picture.size


def thumbnail(source: Path, folder: Path) -> str:
    """Write a small copy of a picture, of an SVG a whole one, into the book; its address there."""
    if source.suffix == ".svg":
        put(folder / "images" / source.name, source.read_bytes())
        return f"images/{source.name}"
    small = f"images/small/{source.stem}.jpg"
    with Image.open(source) as picture:
        copy = picture.convert("RGB")
    copy.thumbnail((480, 480))
    (folder / small).parent.mkdir(parents=True, exist_ok=True)
    copy.save(folder / small, quality=85)
    return small


def outline(soup: BeautifulSoup, path: Path, title: str) -> dict:
    """A page's sections as (id, title), and its HTML."""
    heading, sections = soup.find("h1"), soup.find_all("h2")
    if heading is None or heading.get_text()[:-1] != title:
        raise ValueError(f"{path.name}: no title, a line '# {title}', as the README's table has it")
    parts = [(each["id"], each.get_text()[:-1]) for each in sections]  # without the sign that links to it
    return {"sections": parts, "html": Markup(soup)}


def colours(scheme: str) -> str:
    """CSS that colours code, for light or dark pages."""
    style = {"light": "default", "dark": "github-dark"}[scheme]
    rules = HtmlFormatter(style=style).get_style_defs(".highlight").splitlines()
    # The page has its own background for code; line numbers there are none.
    kept = [rule for rule in rules if rule.startswith(".highlight .")]
    return f"@media (prefers-color-scheme: {scheme}) {{\n" + "\n".join(kept) + "\n}\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "book", help="folder (default: site/book)")
    parser.add_argument("--without-widgets", action="store_true", help="a note in their place: quick")
    given = parser.parse_args(arguments)
    try:
        build(given.out, drawn=() if given.without_widgets else None)
    except (OSError, ValueError) as error:
        sys.exit(f"book: {error}")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
