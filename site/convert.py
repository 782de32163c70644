"""Notebooks as HTML by nbconvert, with formulas as MathML and a description of every picture."""

import importlib.metadata
import io
import re
from pathlib import Path

import jinja2
import math_core
import nbformat
from bs4 import BeautifulSoup
from files import put
from fontTools import subset
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath


class Renderer(IPythonRenderer):
    """Markdown whose formulas are MathML, which browsers draw by themselves."""

    def block_math(self, body: str) -> str:
        return f'<div class="formula">{mathml(body, block=True)}</div>'

    def inline_math(self, body: str) -> str:
        return mathml(body, block=False)


class Exporter(HTMLExporter):
    """nbconvert's exporter with this folder's template; the result is the inside of a page."""

    def __init__(self):
        config = {
            "ExtractOutputPreprocessor": {"enabled": True},
            # Code that the notebook folds away, and all of the cell that only Colab needs.
            "TagRemovePreprocessor": {"enabled": True, "remove_input_tags": ["remove-input"]},
            "RegexRemovePreprocessor": {"enabled": True, "patterns": [r"[\s\S]*google\.colab"]},
            "NbConvertBase": {"display_data_priority": ["image/png", "text/html", "text/markdown", "text/plain"]},
        }
        template = str(Path(__file__).parent / "book_templates" / "cells.html.j2")
        super().__init__(template_name="basic", template_file=template, config=config)

    @jinja2.pass_context
    def markdown2html(self, context, source: str) -> str:
        return html(source)


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises many kinds
        raise ValueError(f"{path.name} is no notebook: {str(error).splitlines()[0]}") from error
    return notebook


def cells(notebook: nbformat.NotebookNode, path: Path, exporter: Exporter, folder: Path) -> BeautifulSoup:
    """A notebook's cells as HTML; the pictures among its outputs become files in the book's folder."""
    resources = {"unique_key": path.stem, "output_files_dir": "pictures"}
    try:
        describe_pictures(notebook)
        for cell in notebook.cells:
            if cell.metadata.get("jupyter", {}).get("source_hidden"):
                cell.metadata["tags"] = [*cell.metadata.get("tags", []), "remove-input"]
        text, resources = exporter.from_notebook_node(notebook, resources)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    for name, data in resources["outputs"].items():
        put(folder / name, data)
    return BeautifulSoup(text, "html.parser")


def html(markdown: str) -> str:
    """Markdown as HTML, its formulas as MathML."""
    return MarkdownWithMath(renderer=Renderer(escape=False, anchor_link_text="#")).render(markdown)


def mathml(formula: str, block: bool) -> str:
    """A TeX formula as MathML."""
    # \bigl and \bigr would do, too, but Chromium does not enlarge a bracket that carries an exponent.
    formula = formula.replace(r"\bigl", r"\left").replace(r"\bigr", r"\right")
    try:
        return math_core.LatexToMathML(fancy_error=False).convert_with_local_state(formula, displaystyle=block)
    except math_core.LatexError as error:
        raise ValueError(f"a formula that cannot be converted, {formula}: {error}") from error


def math_font(text: str) -> bytes:
    """A font that has what these formulas need, large brackets, too: not every device has one."""
    whole = importlib.metadata.distribution("ziamath").locate_file("ziamath/fonts/STIXTwoMath-Regular.ttf")
    options = subset.Options(flavor="woff", name_IDs=["*"])  # its licence stands among the names
    font, subsetter, buffer = subset.load_font(str(whole), options), subset.Subsetter(options), io.BytesIO()
    # MathML draws a single letter from the italic ones, and a root with a sign of its own.
    subsetter.populate(text=text + "√ℎ", unicodes=[*range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)])
    subsetter.subset(font)
    subset.save_font(font, buffer, options)
    return buffer.getvalue()


def describe_pictures(notebook: nbformat.NotebookNode) -> None:
    """Give each picture among the outputs an alt text, where its metadata have none, from the text before."""
    text = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = sentence(cell.source)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = f"Output of the code above: {text}".rstrip(":,")
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
    sentences = [part for part in parts if not part.endswith("?") and "$" not in part]
    sentences = sentences or [each.get_text() for each in headings[-1:]] or [""]
    # A colon before a list leads to that, not to the picture.
    leads = sentences[-1].endswith(":") and after and not after[-1].find_next_sibling()
    chosen = " ".join(sentences[-1 if leads else 0].split())
    return chosen if len(chosen) <= 120 else chosen[:119].rsplit(" ", 1)[0] + "…"
