"""The book: links lead somewhere, formulas and pictures are there, sliders show what the library computes."""

import functools
import http.server
import io
import json
import re
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browsers
import nbformat
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from nbformat import v4
from PIL import Image

from diffusion_utils import schedule
from diffusion_utils.data import to_float, toy_cars
from diffusion_utils.plotting import picture_grid

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "site"))
import book
import build
from convert import sentence
from frames import SCALES
from links import LIVE

FIRST = "01_forward_noising"
STEMS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The book of this repository; of the widgets only those of the first notebook."""
    folder = tmp_path_factory.mktemp("site") / "book"
    book.build(folder, with_frames=[FIRST])
    return folder


def page(folder, name):
    return BeautifulSoup((folder / f"{name}.html").read_text(), "html.parser")


def frames(soup):
    """For each widget of a page: its list of [file, label, alt text]."""
    return [json.loads(each.string) for each in soup.select("figure.frames script")]


def broken(folder):
    """What is wrong with a site's links: list of sentences."""
    soups = {path: BeautifulSoup(path.read_text(), "html.parser") for path in sorted(folder.glob("*.html"))}
    ids = {path: [each["id"] for each in soup.find_all(id=True)] for path, soup in soups.items()}
    faults = [
        f"{path.name}: two things have the id {id}"
        for path, here in ids.items()
        for id in set(here)
        if here.count(id) > 1
    ]
    for path, soup in soups.items():
        loaded = [each["src"] for each in soup.find_all(src=True)]
        loaded += [each["href"] for each in soup.find_all("link", href=True)]
        loaded += [file for each in frames(soup) for file, _, _ in each]
        for sheet in folder.glob("*.css"):
            loaded += re.findall(r"url\(\"?([^\")]+)", sheet.read_text())
        for address in loaded + [each["href"] for each in soup.find_all("a", href=True)]:
            parts = urlsplit(address)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.netloc:
                faults += [f"{path.name}: loads {address}"] if address in loaded else []
            elif parts.scheme == "data" or address == LIVE:
                continue
            elif not target.is_relative_to(folder.resolve()) or not target.is_file():
                faults.append(f"{path.name}: nothing at {address}")
            elif parts.fragment and unquote(parts.fragment) not in ids[target]:
                faults.append(f"{path.name}: no such place, {address}")
    return faults


def test_every_notebook_has_a_page_and_the_first_page_names_them(site):
    assert sorted(path.stem for path in site.glob("*.html")) == [*STEMS, "index"]
    items = page(site, "index").select(".chapters li")
    assert [item.h2.a["href"] for item in items] == [f"{stem}.html" for stem in STEMS]
    readme = (ROOT / "README.md").read_text()
    for item in items:
        assert item.img["alt"] in readme and item.p.get_text() in readme
    around = [[link["href"] for link in page(site, stem).select(".turn a")] for stem in STEMS]
    expected = [STEMS[:i][-1:] + STEMS[i + 1 : i + 2] for i in range(len(STEMS))]
    assert around == [[f"{stem}.html" for stem in pair] for pair in expected]


def test_links_pictures_and_anchors_resolve_and_nothing_comes_from_elsewhere(site):
    assert broken(site) == []


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="b.html">', "nothing at b.html"),
        ('<a href="#x">', "no such place, #x"),
        ('<a href="a.html#%C3%A9">', "no such place"),
        ('<a href="../../etc">', "nothing at ../../etc"),
        ('<img src="x.png">', "nothing at x.png"),
        ('<p id="a"><p id="a">', "the id a"),
        ('<script src="https://x.org/a.js"></script>', "loads https://x.org/a.js"),
        ('<link href="//x.org/a.css">', "loads //x.org/a.css"),
        ('<figure class="frames"><script>[["f/0.jpg", "", ""]]</script></figure>', "nothing at f/0.jpg"),
    ],
)
def test_the_link_checker_finds_faults(tmp_path, html, fault):
    (tmp_path / "a.html").write_text('<p id="é"><a href="#é">fine</a> <a href="https://x.org">too</a>')
    assert broken(tmp_path) == []
    (tmp_path / "a.html").write_text(html)
    (found,) = broken(tmp_path)
    assert found.startswith("a.html: ") and fault in found


@pytest.mark.parametrize("stem", STEMS)
def test_all_that_the_notebook_holds_is_on_its_page(site, stem):
    cells = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    cells = [cell for cell in cells if "google.colab" not in cell.source]
    soup = page(site, stem)
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert (cell.source in soup.main.get_text()) != folded
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    for text in (output.text for output in outputs if output.output_type == "stream"):
        assert text.rstrip() in soup.get_text()
    markdown = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    pictures = sum("image/png" in output.get("data", {}) for output in outputs) + len(
        re.findall(r"!\[[^\]]*\]\(\.\./images/", markdown)
    )
    assert len(soup.select(".text img, .output > img")) == pictures
    assert len(soup.select("main details")) == markdown.count("<details>")
    assert "VBox(" not in soup.get_text()


@pytest.mark.parametrize("stem", STEMS)
def test_formulas_are_mathml(site, stem):
    cells = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    markdown = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    soup = page(site, stem)
    formulas = re.findall(r"\$\$.+?\$\$|\$.+?\$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), re.DOTALL)
    assert len(soup.find_all("math")) == len(formulas)
    assert len(soup.find_all("math", display="block")) == len(soup.select(".formula")) == markdown.count("$$") // 2
    for code in soup.select("pre, code, script"):
        code.decompose()
    assert not re.findall(r"\$|\\[a-zA-Z(\[]", soup.get_text())


def test_every_picture_says_what_it_shows_and_how_large_it_is(site):
    for path in site.glob("*.html"):
        for image in BeautifulSoup(path.read_text(), "html.parser").find_all("img"):
            assert len(image["alt"]) > 10 and "No description" not in image["alt"]
            assert "$" not in image["alt"] and "`" not in image["alt"]
            shape = int(image["width"]) / int(image["height"])
            if not image["src"].endswith("svg"):
                with Image.open(site / image["src"]) as picture:
                    assert shape == pytest.approx(picture.width / picture.height, rel=0.01)


def test_the_slider_shows_what_the_library_computes(site):
    ((shown),) = frames(page(site, FIRST))
    sheet = np.array(Image.open(ROOT / "images/stanford_cars_examples.png"))
    photos = torch.from_numpy(sheet).reshape(64, 8, 64, 3).permute(1, 3, 0, 2)
    x0 = to_float(torch.cat([photos, toy_cars.load(8, size=64).images]))[[0, 3, 5, 8, 10, 13]]
    noise, linear = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)), schedule.linear(1000)
    times = [round(999 * k / 40) for k in range(41)]
    true = np.stack([picture_grid(linear.add_noise(x0, noise, t), 3) for t in times]).astype(float)
    assert len(shown) == len(times)
    for k, (file, label, alt) in enumerate(shown):
        error = np.asarray(Image.open(site / file), dtype=float) - true
        assert np.abs(error[k]).mean() < 8  # of 255
        assert np.square(error).mean((1, 2, 3)).argmin() == k
        assert f"<b>t = {times[k]}</b>" in label and f"√ᾱ = {linear.alphas_cumprod[times[k]] ** 0.5:.3f}" in label
        assert alt.startswith(f"The pictures: t = {times[k]}, signal-to-noise ratio")
    figure = page(site, FIRST).figure
    slider = figure.input
    assert (slider["type"], slider["min"], slider["max"]) == ("range", "0", "40")
    assert [figure.img["src"], figure.img["alt"]] == shown[int(slider["value"])][::2]
    # A slider says by itself where it stands; twice would be too much.
    assert not figure.select_one(".label").get("aria-live")
    assert sum(path.stat().st_size for path in (site / "frames").rglob("*.jpg")) < 3e6


# A repository of one small notebook, with every kind of widget.

WALK = """
def step(t):
    return t, torch.full((1, 3, 8, 8), t / 5), torch.full((1, 3, 8, 8), -t / 5)
"""
DRAWN = """
PROMPTS = ["a red van", "<a> & b"]
def draw(prompt, scale, seed):
    return torch.full((2, 3, 8, 8), scale / 5 - (prompt != PROMPTS[0]) / 4)
"""


def cells():
    """Of the small notebook, by name."""
    alts = ({"image/png": {"alt": "a dot"}}, {})
    outputs = [v4.new_output("display_data", {"image/png": PICTURE}, metadata=alt) for alt in alts]
    code = {
        "bootstrap": "import google.colab",
        "import": "import torch\nfrom diffusion_utils.plotting import widgets",
        "walk": WALK,
        "scrubber": "widgets.scrubber([step(t) for t in (4, 2, 0, -1)])",
        "draw": DRAWN,
        "box": "widgets.prompt_box(draw, 'a red van')",
    }
    made = {name: v4.new_code_cell(source) for name, source in code.items()}
    text = [
        "# 1 · Small",
        "## A & B",
        "$x$ [itself](01_small.ipynb#A-&-B) [results](../README.md#results)",
        "[all](../README.md#the-notebooks) [file](../images/x.png) [folder](../images)",
        "![a dot](../images/x.png) [![Colab](https://x.org/badge.svg)](https://x.org)",
        "| a | b |\n| - | - |\n| 1 | 2 |",
    ]
    before = ["## C", "Why? Because `x` of $y$ is 1. So **it is** (Ho et al. 2020, eq. 3). Then:", "- this"]
    texts = {"text": v4.new_markdown_cell("\n\n".join(text)), "before": v4.new_markdown_cell("\n\n".join(before))}
    return {**texts, "plot": v4.new_code_cell("plot()", outputs=outputs), **made}


def small(root, chosen):
    """Writes a repository whose one notebook has these cells."""
    for name in ("notebooks", "images"):
        (root / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / "images/x.png")
    (root / "pyproject.toml").write_text('[project]\n[project.urls]\nRepository = "https://git.example/a/b/"\n')
    (root / "README.md").write_text(
        "| | notebook | what you take away | |\n| - | - | - | - |\n"
        "| ![a dot](images/x.png) | [1 · Small](notebooks/01_small.ipynb) | *Much* | x |\n"
    )
    nbformat.write(v4.new_notebook(cells=list(chosen.values())), root / "notebooks/01_small.ipynb")
    return root


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    folder = tmp_path_factory.mktemp("little")
    book.build(folder / "book", root=small(folder / "root", cells()))
    return folder


def test_links_of_a_notebook_lead_to_pages_or_to_the_repository(little):
    assert broken(little / "book") == []
    soup = page(little / "book", "01_small")
    text = soup.select_one(".text")
    assert {link.get_text(): link["href"] for link in text.find_all("a")} == {
        "#": "#A-&-B",
        "itself": "01_small.html#A-&-B",
        "all": "index.html",
        "results": "https://git.example/a/b#results",
        "file": "https://git.example/a/b/blob/main/images/x.png",
        "folder": "https://git.example/a/b/tree/main/images",
        "Colab": "https://x.org",
    }
    assert [link.get_text() for link in soup.select("nav ul ul a")] == ["A & B", "C"]
    assert "google.colab" not in soup.get_text() and text.select_one(".scroll > table")
    assert page(little / "book", "index").select_one(".chapters em").get_text() == "Much"


def test_alt_texts_come_from_the_metadata_or_from_the_text_before(little):
    alts = [image["alt"] for image in page(little / "book", "01_small").select(".output > img")]
    assert alts == ["a dot", "Output of the code above: So it is (Ho et al. 2020, eq. 3)."]


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("First. Second.", "First."),
        ("First. Like *this*:", "Like this:"),
        ("Who? We.", "We."),
        ("", ""),
        ("# Only a heading", "Only a heading"),
        ("Before.\n\n## Between\n\nAfter.", "After."),
        ("word " * 50, "word " * 22 + "word…"),
        ("With $x$. Without.", "Without."),
        ("One. List:\n\n- two", "One."),
    ],
)
def test_the_sentence_that_describes_a_picture(markdown, expected):
    assert sentence(markdown) == expected


def test_every_step_of_a_walk_and_every_prompt_has_its_frame(little):
    soup = page(little / "book", "01_small")
    walk, drawn = frames(soup)
    shades = [np.asarray(Image.open(little / "book" / file))[:, [2, -3]].mean((0, 2)) for file, _, _ in walk]
    assert np.allclose(shades, [[127.5 + 25.5 * t, 127.5 - 25.5 * t] for t in (4, 2, 0, -1)], atol=2)
    assert [re.search("<b>(.+)</b>", label)[1] for _, label, _ in walk] == ["t = 4", "t = 2", "t = 0", "finished"]
    shades = [np.asarray(Image.open(little / "book" / file))[2, 2].mean() for file, _, _ in drawn]
    assert np.allclose(shades, [127.5 * (1 + w / 5 - p / 4) for w in SCALES for p in (0, 1)], atol=2)
    assert drawn[3][2] == "The pictures: <a> & b, w = 3, seed 0" and "<b>&lt;a&gt; &amp; b</b>" in drawn[3][1]
    prompt, scale = soup.select("select")
    assert [option.get_text() for option in prompt.select("option")] == ["a red van", "<a> & b"]
    assert (prompt["data-stride"], scale["data-stride"]) == ("1", "2")
    assert [each.get_text() for each in soup.select("option[selected]")] == ["a red van", "3"]
    second = soup.select("figure")[1]
    assert second.img["src"] == drawn[2][0] and second.select_one(f'a[href="{LIVE}"]')


def test_a_slider_shows_what_its_cells_have_trained(tmp_path):
    learn = """
from diffusion_utils.plotting import picture_grid
weight = torch.zeros(1, requires_grad=True)
(weight - 1).square().sum().backward()
pictures = [torch.full((1, 3, 8, 8), shade) for shade in (weight.grad.item() / 2, 0.5)]
pngs = [widgets.encode(picture_grid(each)) for each in pictures]
"""
    learnt = v4.new_code_cell(learn)
    slider = v4.new_code_cell("widgets.frame_slider(pngs, ['black', 'grey'], 'step')")
    chosen = {name: cells()[name] for name in ("import", "text")} | {"learn": learnt, "slider": slider}
    book.build(tmp_path / "book", root=small(tmp_path / "root", chosen))
    (shown,) = frames(page(tmp_path / "book", "01_small"))
    shades = [np.asarray(Image.open(tmp_path / "book" / file)).mean() for file, _, _ in shown]
    assert [label for _, label, _ in shown] == ["black", "grey"] and np.allclose(shades, [0, 191], atol=2)


def test_without_widgets_a_note_stands_in_their_place(little, tmp_path):
    book.build(tmp_path / "book", with_frames=(), root=little / "root")
    soup = page(tmp_path / "book", "01_small")
    assert not soup.find("figure") and len(soup.select(".output > .note")) == 2
    assert not (tmp_path / "book/frames").exists() and broken(tmp_path / "book") == []


def test_the_same_notebooks_make_the_same_bytes_and_replace_an_older_book(little, tmp_path):
    for name in ("math.woff", "old.html"):
        (tmp_path / "book").mkdir(exist_ok=True)
        (tmp_path / "book" / name).touch()
    book.build(tmp_path / "book", root=little / "root")
    assert [path.name for path in tmp_path.iterdir()] == ["book"]  # nothing is left beside it
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (little / "book", tmp_path / "book")
    )
    assert first == second


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("text", "# A\n\n[x](gone.ipynb)", "01_small.ipynb: gone.ipynb leads to nothing"),
        ("text", "# A\n\n[x](../../outside)", "01_small.ipynb: ../../outside leads to nothing"),
        ("text", "# A\n\n![a](../images/gone.png)", "01_small.ipynb: ../images/gone.png leads to nothing"),
        ("text", "# A\n\n![](../images/x.png)", "01_small.ipynb: a picture without alt text, images/x.png"),
        ("text", "# A\n\n$\\foo$", r"01_small.ipynb: a formula that cannot be converted, \foo: "),
        ("text", "no title", "01_small.ipynb: no title"),
        ("text", "# 2 · Another", "01_small.ipynb: no title, a line '# 1 · Small'"),
        ("draw", DRAWN.replace("a red van", "a blue van"), "01_small.ipynb: a prompt box needs a list PROMPTS"),
        ("scrubber", "walk = widgets.scrubber([step(1)])", "01_small.ipynb: a cell that calls a widget has to show it"),
        (
            "scrubber",
            "widgets.scrubber([])",
            "01_small.ipynb: the cells of its widget fail: ValueError('no steps to show",
        ),
    ],
)
def test_bad_input_is_named_and_the_old_book_stays(tmp_path, name, source, complaint):
    chosen = cells()
    chosen[name].source = source
    needed = {
        "text": ["text"],
        "draw": ["import", "text", "draw", "box"],
        "scrubber": ["import", "text", "walk", "scrubber"],
    }
    root = small(tmp_path / "root", {key: chosen[key] for key in needed[name]})
    (tmp_path / "book").mkdir()
    (tmp_path / "book/math.woff").write_text("old")
    with pytest.raises(ValueError, match=re.escape(complaint)):
        book.build(tmp_path / "book", root=root)
    assert [path.name for path in (tmp_path / "book").iterdir()] == ["math.woff"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book", "root"]


def test_a_broken_notebook_or_table_is_named(tmp_path):
    root = small(tmp_path / "root", {})
    (root / "notebooks/01_small.ipynb").write_text("{")
    with pytest.raises(ValueError, match=r"01_small\.ipynb is no notebook"):
        book.build(tmp_path / "book", root=root)
    (root / "README.md").write_text("| | notebook | what you take away |\n")
    with pytest.raises(ValueError, match=r"README\.md: its table of notebooks has to name 01_small,"):
        book.build(tmp_path / "book", root=root)


def test_the_command_never_replaces_what_is_no_book(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book/mine").write_text("precious")
    (tmp_path / "index.html").write_text("precious, too")
    command = ["book", "--without-widgets", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="error: .* holds something that is no such page"):
        build.main(command)
    assert (tmp_path / "index.html").read_text() == "precious, too"
    build.page(tmp_path)
    with pytest.raises(SystemExit, match="error: .*book holds something that is no book"):
        build.main(command)
    assert (tmp_path / "book/mine").read_text() == "precious"


# In a browser.

in_browser = pytest.mark.skipif(bool(browsers.missing()), reason=browsers.missing())


@pytest.fixture(scope="module")
def chromium():
    with browsers.chromium() as browser:
        yield browser


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def visit(chromium):
    """A function that opens a page of a folder, from a server; the browser must have no complaint till the end."""
    servers, complaints = [], []

    def open_page(folder, name, **options):
        handler = functools.partial(Quiet, directory=folder)
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        tab = chromium.new_context(**options).new_page()
        tab.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        # A picture that is replaced before it has come is no fault.
        tab.on(
            "requestfailed",
            lambda request: complaints.append(request.url) if request.failure != "net::ERR_ABORTED" else None,
        )
        tab.goto(f"http://127.0.0.1:{servers[-1].server_port}/{name}.html")
        return tab

    yield open_page
    for server in servers:
        server.shutdown()
        server.server_close()
    assert complaints == []


def shown(tab, place=0):
    """File, text of the label and alt text that a widget shows, once its picture has arrived."""
    figure = tab.locator("figure.frames").nth(place)
    figure.locator("img").evaluate("image => { image.loading = 'eager'; return image.decode(); }")
    image = figure.locator("img")
    return [image.get_attribute("src"), figure.locator(".label").text_content(), image.get_attribute("alt")]


def as_in_browser(frame):
    """A frame with its label's text in place of the label's HTML."""
    return [frame[0], BeautifulSoup(frame[1], "html.parser").get_text(), frame[2]]


@in_browser
def test_keys_move_the_slider_and_its_picture(site, visit):
    (expected,) = frames(page(site, FIRST))
    tab = visit(site, FIRST)
    slider = tab.get_by_role("slider", name="t")
    start = int(slider.input_value())
    assert shown(tab) == as_in_browser(expected[start])
    slider.focus()
    moves = [("ArrowRight", start + 1), ("ArrowRight", start + 2), ("ArrowLeft", start + 1), ("End", 40), ("Home", 0)]
    for key, place in moves:
        tab.keyboard.press(key)
        assert shown(tab) == as_in_browser(expected[place])
        assert slider.get_attribute("aria-valuetext").startswith(
            BeautifulSoup(expected[place][1], "html.parser").b.text
        )

    def seen(key):
        tab.keyboard.press(key)
        shown(tab)
        return np.asarray(Image.open(io.BytesIO(tab.locator("figure img").screenshot())), dtype=float)

    assert np.abs(seen("Home") - seen("End")).mean() > 20


@in_browser
def test_play_runs_to_the_end_and_stops(little, visit):
    walk, _ = frames(page(little / "book", "01_small"))
    tab = visit(little / "book", "01_small")
    button = tab.get_by_role("button")
    tab.get_by_role("slider").press("Home")
    button.click()
    assert button.inner_text() == "Pause"
    tab.get_by_role("button", name="Play").wait_for(timeout=10_000)
    assert shown(tab) == as_in_browser(walk[-1])
    button.click()  # from the beginning again
    button.click()
    assert button.inner_text() == "Play" and shown(tab)[0] in [walk[0][0], walk[1][0]]


@in_browser
def test_prompt_and_scale_choose_the_picture(little, visit):
    _, drawn = frames(page(little / "book", "01_small"))
    tab = visit(little / "book", "01_small")
    for i, prompt in enumerate(("a red van", "<a> & b")):
        for j, scale in enumerate(SCALES):
            tab.get_by_label("prompt").select_option(prompt)
            tab.get_by_label("guidance w").select_option(str(scale))
            file, _, alt = shown(tab, 1)
            assert [file, alt] == [drawn[2 * j + i][0], f"The pictures: {prompt}, w = {scale}, seed 0"]


@in_browser
def test_without_scripts_one_frame_and_a_note_are_there(site, visit):
    tab = visit(site, FIRST, java_script_enabled=False)
    figure = tab.locator("figure.frames")
    assert figure.locator("img").is_visible() and not figure.locator(".controls").is_visible()
    note = figure.locator("noscript p")
    assert note.is_visible() and note.inner_text().startswith("This is one of 41 pictures")


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_all_pictures_load(site, visit, scheme):
    tab = visit(site, "index", viewport={"width": 375, "height": 700}, color_scheme=scheme)
    for stem in ("index", *STEMS):
        tab.goto(tab.url.rsplit("/", 1)[0] + f"/{stem}.html")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 375, stem
        widths = tab.evaluate("""Promise.all([...document.images].map(
            async image => { image.loading = "eager"; await image.decode(); return image.naturalWidth; }))""")
        assert widths and min(widths) > 0
        if "<math" in (site / f"{stem}.html").read_text():
            tab.evaluate("document.fonts.ready")
            assert tab.evaluate("[...document.fonts].map(font => font.status)") == ["loaded"]
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 384) == (scheme == "light")


@in_browser
def test_the_first_tab_skips_to_the_text_and_wide_code_can_be_scrolled_by_keys(site, visit):
    tab = visit(site, FIRST, viewport={"width": 375, "height": 700})
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the text"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    wide = tab.locator("pre").evaluate_all("""boxes => boxes.filter(
        box => box.scrollWidth > box.clientWidth).map(box => box.tabIndex)""")
    assert wide and set(wide) == {0}


def test_it_does_not_replace_the_folder_it_is_made_in():
    with pytest.raises(ValueError, match="holds something that is no book"):
        book.build(ROOT / "site")
    assert (ROOT / "site" / "book.py").exists()
