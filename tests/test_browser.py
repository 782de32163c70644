"""What readers see and do in JupyterLab, in a real browser: each notebook's widget, moved by keys and mouse.

A notebook is cut down to what its widget needs. The same code runs in this process too, and every
picture in the page is compared, pixel by pixel, with the one that the library makes here for the same
slider values. Skipped where there is no browser. SCREENSHOTS=folder keeps pictures of the pages.
"""

import ast
import base64
import contextlib
import html
import io
import json
import os
import re
import secrets
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "site"), str(ROOT / "tests")]

import browsers
from widget_cells import needed, widget_cells

if browsers.missing("jupyterlab"):
    pytest.skip(browsers.missing("jupyterlab"), allow_module_level=True)

from playwright.sync_api import expect

DEADLINE = 60_000  # ms for anything to happen: on two cores it takes a tenth of that
NOISE, WALK, TEXT, LATENT = "01_forward_noising", "04_sampling", "06_text_to_image", "07_latent_diffusion"


def widget_of(*stems):
    """Runs a test with these notebooks' widgets; each stays open for all its tests, then is closed."""
    return pytest.mark.parametrize("widget", stems, indirect=True)


def code(stem: str) -> list[str]:
    """The statements that a notebook's widget needs, its own last: no training, no figures."""
    [(_, cells)] = widget_cells(ROOT / "notebooks" / f"{stem}.ipynb")
    statements = [ast.unparse(statement) for cell in cells for statement in ast.parse(cell).body]
    return [statements[i] for i in needed(statements, len(statements) - 1)]


def drawn_here(stem: str):
    """The widget of a notebook, made in this process."""
    *before, own = code(stem)
    space = {}
    with contextlib.chdir(ROOT / "notebooks"):
        exec("\n".join(before), space)  # our own notebooks' code
        return eval(own, space)


class Lab:
    """A JupyterLab server that shows a folder to us alone."""

    def __init__(self, folder: Path):
        (folder / "notebooks").mkdir()
        for name in ("images", "benchmarks"):
            (folder / name).symlink_to(ROOT / name)
        settings = folder / "config/lab/user-settings/@jupyterlab/apputils-extension"
        settings.mkdir(parents=True)
        quiet = {"fetchNews": "false", "checkForUpdates": False}  # neither asks a server, nor the reader
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder, self.token, self.address = folder, secrets.token_hex(), f"http://127.0.0.1:{port}"
        places = {f"JUPYTER_{name.upper()}_DIR": str(folder / name) for name in ("config", "data", "runtime")}
        # One thread, as in this process: sums in another order would change the last bits of a drawing.
        places |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": port,
            "ServerApp.port_retries": 0,
            "ServerApp.root_dir": folder,
            "IdentityProvider.token": self.token,
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
            "LabApp.extension_manager": "readonly",
        }
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            command + [f"--{name}={value}" for name, value in options.items()],
            cwd=folder,
            env=os.environ | places,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def ask(self, path: str, method: str = "GET"):
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.address}/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=DEADLINE / 1000) as reply:
            return json.loads(reply.read() or "null")

    def wait(self):
        deadline = time.monotonic() + DEADLINE / 1000
        while True:
            try:
                return self.ask("api/status")
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "log").read_text()
                    raise RuntimeError(f"JupyterLab did not start:\n{log}") from None
                time.sleep(0.05)

    def write(self, stem: str) -> str:
        """The address of a notebook with a widget between headings, which arrow keys could fold."""
        new, cells = nbformat.v4, ["# Above", "\n".join(code(stem)), "## Below"]
        cells = [new.new_code_cell(c) if i == 1 else new.new_markdown_cell(c) for i, c in enumerate(cells)]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = self.folder / "notebooks" / f"{stem}.ipynb"
        nbformat.write(new.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
        # A workspace of its own, or the page would open the notebooks before it as well.
        return f"{self.address}/lab/workspaces/{stem}/tree/notebooks/{path.name}?token={self.token}"

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    server = Lab(tmp_path_factory.mktemp("lab"))
    try:
        server.wait()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def browser():
    with browsers.chromium() as chromium:
        yield chromium.new_context(viewport={"width": 1280, "height": 900})  # one cache for all pages


class Widget:
    """A notebook's widget in the page, and `here` the library's own, made in this process."""

    def __init__(self, page, stem: str, errors: list[str]):
        self.page, self.stem, self.errors = page, stem, errors
        self.area = page.locator(".jp-OutputArea-output", has=page.locator(".widget-image"))
        self.label, self.image = self.area.locator(".widget-html-content"), self.area.locator("img")
        self.handle, self.readout = self.area.locator(".noUi-handle"), self.area.locator(".widget-readout")

    def choose(self, *menu: str):
        items = self.page.locator(".lm-MenuBar-itemLabel, .lm-Menu-itemLabel")
        for item in menu:
            items.get_by_text(item, exact=True).click()

    def focus(self):
        self.handle.click()
        self.page.keyboard.press("Home")

    def picture(self) -> np.ndarray:
        data = self.image.evaluate("""async image => {
            const blob = await (await fetch(image.src)).blob(), reader = new FileReader();
            reader.readAsDataURL(blob);
            return new Promise(done => reader.onload = () => done(reader.result));
        }""")
        return decoded(base64.b64decode(data.split(",")[1]))

    def check(self, off_by: int = 0):
        """The page says what the library says, and shows what it draws, to within `off_by` of 255."""
        _, label, image = self.here.children
        expect(self.label).to_have_text(plain(label.value), timeout=DEADLINE)
        shown, expected = self.picture(), decoded(image.value)
        assert shown.shape == expected.shape
        assert np.abs(shown.astype(int) - expected).max() <= off_by

    def set(self, value: int):
        """Moves the library's slider, then compares."""
        slider(self.here).value = value
        self.check()

    def listen(self):
        """From now on, everything that the label says is kept in the page's variable `said`."""
        self.label.evaluate("""label => {
            window.said = [];
            const observer = new MutationObserver(() => said.push(label.textContent));
            observer.observe(label, {childList: true, subtree: true});
        }""")

    def fits(self, condition: str):
        """Waits until a JavaScript condition on the rectangles of the cell's output, its parts and its image holds."""
        self.page.wait_for_function(
            f"""area => {{
                const box = element => element.getBoundingClientRect(), cell = box(area);
                const parts = [...area.querySelectorAll("*")].filter(part => part.offsetParent).map(box);
                const image = box(area.querySelector("img"));
                return {condition};
            }}""",
            arg=self.area.element_handle(),
        )

    def keep(self, name: str):
        if os.environ.get("SCREENSHOTS"):
            expect(self.page.locator("#jupyterlab-splash")).to_have_count(0)  # hides the page in a new theme
            self.page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{self.stem}-{name}.png")


@pytest.fixture(scope="module")
def widget(request, lab, browser):
    stem, errors = request.param, []
    page = browser.new_page()
    page.set_default_timeout(DEADLINE)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(lab.write(stem), wait_until="commit")
    # "Python 3 (ipykernel) | Idle": before it has a kernel, "Run" would ask which one.
    page.get_by_text(") | Idle").wait_for()
    widget = Widget(page, stem, errors)
    widget.choose("Run", "Run All Cells")
    widget.here = drawn_here(stem)  # while the kernel does the same
    failed = page.locator("pre", has_text="Traceback (most recent call last)")
    widget.image.or_(failed).wait_for()
    assert not failed.count(), failed.inner_text()
    yield widget
    page.close()
    for kernel in lab.ask("api/kernels"):  # gives its memory back
        lab.ask(f"api/kernels/{kernel['id']}", "DELETE")


def slider(box):
    """The slider of a widget, which may have a Play button before it."""
    return getattr(box.children[0], "children", [box.children[0]])[-1]


def plain(markup: str) -> str:
    return html.unescape(re.sub("<[^>]+>", "", markup))


def decoded(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture)


@widget_of(NOISE, WALK)
def test_keys_move_the_slider_and_the_picture_follows(widget):
    widget.focus()
    widget.set(0)
    last = slider(widget.here).max
    # A page is five steps of the slider that ipywidgets 8 draws.
    for key, value in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("PageUp", 6),
        ("ArrowUp", 7),
        ("PageDown", 2),
        ("End", last),
        ("ArrowLeft", last - 1),
        ("Home", 0),
    ):
        widget.page.keyboard.press(key)
        widget.set(value)
        expect(widget.handle).to_have_attribute("aria-valuenow", f"{value}.0")


@widget_of(NOISE, WALK)
def test_arrow_keys_leave_the_notebook_around_the_slider_alone(widget):
    """JupyterLab has commands on the same keys: they select cells and fold headings."""
    widget.focus()
    active = widget.page.locator(".jp-Cell.jp-mod-active")
    expect(active).to_have_count(1)
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowDown", "ArrowUp", "ArrowUp", "ArrowRight"):
        widget.page.keyboard.press(key)  # also at the end of the slider, where it has nothing to do
    widget.set(3)
    assert active.locator("img").count() == 1  # the widget's cell, neither folded nor left
    expect(widget.handle).to_be_focused()


@widget_of(NOISE, WALK)
def test_dragging_redraws_before_the_mouse_is_let_go(widget):
    widget.focus()
    widget.set(0)
    mouse, track = widget.page.mouse, widget.area.locator(".noUi-base").bounding_box()
    widget.handle.hover()
    mouse.down()
    mouse.move(track["x"] + track["width"] / 2, track["y"], steps=10)
    value, last = int(widget.readout.inner_text()), slider(widget.here).max
    assert 0.45 * last < value < 0.55 * last
    widget.set(value)
    mouse.up()
    widget.set(value)
    widget.keep("middle")


@widget_of(NOISE)
def test_the_label_tells_t_and_how_much_signal_is_left(widget):
    widget.focus()
    widget.page.keyboard.press("End")
    number = r"−?[\d.,]+(?:e-\d+)?"
    said = rf"t = 999 .*signal-to-noise ratio {number} \({number} dB\).*share of signal left √ᾱ = 0\.\d\d\d"
    expect(widget.label).to_have_text(re.compile(said), timeout=DEADLINE)


@widget_of(NOISE)
def test_time_from_key_to_picture(widget, record_property):
    """Told, not judged: it depends on the machine."""
    widget.focus()
    widget.set(0)
    times = []
    for t in range(1, 21):
        widget.image.evaluate("""image => { window.redrawn = new Promise(done => {
            const once = {capture: true, once: true};
            let pressed;
            document.addEventListener("keydown", () => pressed = performance.now(), once);
            new MutationObserver((_, observer) => {
                observer.disconnect();
                done(performance.now() - pressed);
            }).observe(image, {attributeFilter: ["src"]});
        }) }""")
        widget.page.keyboard.press("ArrowRight")
        times.append(widget.page.evaluate("window.redrawn"))
        widget.set(t)  # also lets the page come to rest
    told = f"median {statistics.median(times):.0f} ms, longest {max(times):.0f} ms"
    record_property("the noise slider, from key to picture", told)


@widget_of(WALK)
def test_play_runs_through_the_steps_from_where_the_slider_is(widget):
    widget.focus()
    for _ in range(2):
        widget.page.keyboard.press("PageUp")
    widget.set(10)
    widget.listen()
    play, stop, *_ = widget.area.locator(".widget-play button").all()
    play.click()
    widget.page.wait_for_function("new Set(said).size >= 3")
    play.click()  # now it pauses
    value = int(widget.readout.inner_text())
    assert 13 <= value < slider(widget.here).max
    widget.set(value)
    seen = [int(re.search(r"step (\d+) of", text)[1]) for text in widget.page.evaluate("said")]
    assert seen == sorted(seen) and seen[0] > 10  # in order; a slow kernel may leave one out
    widget.keep("paused")
    interval = widget.here.children[0].children[0].interval
    widget.page.wait_for_timeout(3 * interval)  # that nothing happens can only be waited for
    assert int(widget.readout.inner_text()) == value
    stop.click()
    widget.set(0)


@widget_of(TEXT, LATENT)
def test_another_prompt_scale_or_seed_draws_what_the_library_draws(widget):
    text, scale, seed = widget.here.children[0].children
    widget.check(off_by=2)
    widget.keep("first")
    before = widget.picture()
    widget.listen()

    line = widget.area.locator("input[type=text]")
    line.fill("a yellow zebra pickup")
    line.press("Enter")
    text.value = "a yellow zebra pickup"
    widget.check(off_by=2)
    expect(widget.label).to_contain_text(re.compile("zebra.*zebra"))  # the prompt, and what is unknown in it
    assert "drawing …" in widget.page.evaluate("said")
    assert np.abs(widget.picture().astype(int) - before).mean() > 10  # another picture, far beyond off_by
    widget.keep("unknown-word")

    widget.handle.focus()
    widget.page.keyboard.press("ArrowRight")
    scale.value += 0.5
    widget.check(off_by=2)

    number = widget.area.locator("input[type=number]")
    number.fill("5")
    number.press("Enter")
    seed.value = 5
    widget.check(off_by=2)
    expect(widget.label).to_contain_text("w = 3.5")
    expect(widget.label).to_contain_text("seed 5")


@widget_of(NOISE, WALK, TEXT, LATENT)
def test_nothing_sticks_out_of_a_wide_or_a_narrow_page(widget):
    # JupyterLab arranges the page a while after the window has its new size: each line waits until it holds.
    for width in (700, 1280):
        widget.page.set_viewport_size({"width": width, "height": 900})
        widget.fits(f"cell.right <= {width} && parts.every(part => part.right <= cell.right)")
        height, picture_width, _ = widget.picture().shape
        widget.fits(f"Math.abs(image.width * {height / picture_width} - image.height) <= 1")  # not squeezed
        widget.keep(f"{width}-wide")
    width = widget.here.children[2].layout.width.removesuffix("px")
    widget.fits(f"Math.abs(image.width - {width}) < 0.01")  # here there is room for it


@widget_of(NOISE, WALK, TEXT, LATENT)
def test_readers_who_cannot_see_are_told_what_the_picture_shows(widget):
    shows = {NOISE: "pictures with the noise of timestep t", WALK: "the picture foreseen", TEXT: "drawn for the prompt"}
    expect(widget.image).to_have_attribute("title", re.compile(shows.get(widget.stem, shows[TEXT])))
    assert widget.area.locator("[title=null]:visible").evaluate_all("found => found.map(e => e.outerHTML)") == []


@widget_of(NOISE, WALK, TEXT, LATENT)
def test_text_stands_out_in_the_light_and_in_the_dark_theme(widget):
    """WCAG asks for a contrast of at least 4.5."""
    for theme in ("Dark", "Light"):
        widget.choose("Settings", "Theme", f"JupyterLab {theme}")
        light = "true" if theme == "Light" else "false"
        expect(widget.page.locator("body")).to_have_attribute("data-jp-theme-light", light, timeout=DEADLINE)
        widget.keep(theme)
        words = widget.area.locator(".widget-label:visible, .widget-readout, .widget-html-content *, input")
        pairs = words.evaluate_all("""elements => elements.map(element => {
            const paint = new OffscreenCanvas(1, 1).getContext("2d"), layers = [];
            const fill = colour => {
                paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
                return [...paint.getImageData(0, 0, 1, 1).data];
            };
            for (let e = element; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
            return [layers.map(fill).pop(), fill(getComputedStyle(element).color)];
        })""")
        assert len(pairs) >= 4
        for background, colour in pairs:
            dark, bright = sorted((luminance(background), luminance(colour)))
            assert (bright + 0.05) / (dark + 0.05) >= 4.5
            assert (luminance(background) > 0.5) == (theme == "Light")  # the theme has changed indeed


def luminance(colour: list[int]) -> float:
    """Relative luminance by WCAG 2, of red, green, blue, opacity from 0 to 255."""
    assert colour[3] == 255
    c = np.divide(colour[:3], 255)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


@widget_of(NOISE, WALK, TEXT, LATENT)
def test_the_page_has_logged_no_errors(widget):
    """In all that the tests above did."""
    assert not [error for error in widget.errors if not re.search("Failed to load resource|net::ERR", error)]
