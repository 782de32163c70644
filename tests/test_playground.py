"""The playground on the page, in Chromium: its field against the package, and by mouse, finger and keys."""

import base64
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_utils.data import plane
from diffusion_utils.sampling import Noise, ddim
from diffusion_utils.schedule import flow

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "site"), str(Path(__file__).parent)]
import build
from browsers import chromium, missing, served


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The page without its networks, which the playground does not ask, and the errors in its program."""
    if why := missing():
        pytest.skip(why)
    folder, errors = tmp_path_factory.mktemp("site"), []
    build.page(folder)
    with served(folder) as address, chromium() as browser:
        page = browser.new_context(viewport={"width": 1000, "height": 900}, has_touch=True).new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_function("/dots at/.test(document.getElementById('field-status').textContent)")
        yield page, errors


@pytest.fixture
def page(opened):
    page, errors = opened
    yield page
    assert errors == []


def module(page, code, argument=None):
    """What an expression of the playground's module `f` gives."""
    return page.evaluate(f"argument => import('./field.js').then(f => {code})", argument)


def shown(page):
    """What the canvas shows: uint8 (600, 600, 4)."""
    raw = page.evaluate(
        "btoa(Array.from(document.getElementById('field').getContext('2d').getImageData(0, 0, 600, 600).data,"
        " b => String.fromCharCode(b)).join(''))"
    )
    return np.frombuffer(base64.b64decode(raw), np.uint8).reshape(600, 600, 4).astype(int)


def reddish(page):
    """Where the walking dots are: bool (600, 600)."""
    red, green, blue, solid = shown(page).transpose(2, 0, 1)
    return (red > green + 60) & (red > blue + 60) & (solid > 200)


def slide(page, value):
    page.fill("#field-tau", str(value))


@pytest.mark.parametrize("name", plane.PLANES)
@pytest.mark.parametrize("count", [300, 600])
def test_its_points_are_the_packages(page, name, count):
    ours = torch.tensor(module(page, "f.points(...argument)", [name, count]))
    torch.testing.assert_close(ours, plane.points(name, count), rtol=0, atol=1e-3)


def test_its_walk_is_the_packages_ddim(page):
    car, schedule = plane.points("car", 300).double(), flow(1000)
    start = Noise([0], (8, 2))()[0].double()

    def guess(x, t):
        alpha, sigma = schedule.alpha_sigma(t, like=x)
        return (-torch.cdist(x, alpha[0] * car).square() / (2 * sigma**2)).softmax(1) @ car

    theirs = [step.x_t for step in ddim(guess, schedule, start, steps=20, clip_sample=False)]
    path = module(page, "f.euler(argument[0], 20, argument[1])", [start.tolist(), car.tolist()])
    assert len(path) == 21
    torch.testing.assert_close(torch.tensor(path[-1], dtype=torch.float64), theirs[-1], rtol=0, atol=1e-9)
    half = torch.tensor(path[10], dtype=torch.float64)  # τ = ½: y is x_t/(α + σ) = x_t/√2
    torch.testing.assert_close(half, theirs[10] / 2**0.5, rtol=0, atol=1e-9)


def test_the_slider_moves_the_dots_from_noise_to_the_data(page):
    page.select_option("#field-data", "ring")
    page.uncheck("#field-arrows")
    slide(page, 100)
    wide = reddish(page)
    slide(page, 0)
    there = reddish(page)
    y, x = np.nonzero(there)
    radius = np.hypot(x - 299.5, y - 299.5) * 5.4 / 600
    assert np.abs(radius - 2**0.5).max() < 0.1  # a dot's own size
    assert wide.any() and np.hypot(*np.nonzero(wide)).std() > 0 and (wide & ~there).sum() > 500
    assert page.inner_text("#field-status").startswith("256 dots at τ = 0.00, 50 steps; 300 points of data")
    # One step goes to the mean of the data, the middle.
    page.select_option("#field-steps", "1")
    y, x = np.nonzero(reddish(page))
    assert np.hypot(x - 299.5, y - 299.5).max() < 8
    page.select_option("#field-steps", "50")


def test_arrows_can_be_shown_and_hidden(page):
    page.select_option("#field-data", "car")
    slide(page, 50)
    page.check("#field-arrows")
    with_arrows = shown(page)
    page.uncheck("#field-arrows")
    without = shown(page)
    assert (with_arrows != without).any(2).sum() > 3000
    page.check("#field-arrows")


def test_walking_ends_at_the_data_and_the_slider_interrupts_it(page):
    slide(page, 100)
    page.click("#field-play")
    page.wait_for_function("document.getElementById('field-tau').value === '0'")
    page.click("#field-play")
    slide(page, 70)
    page.wait_for_timeout(200)
    assert page.input_value("#field-tau") == "70"


def test_points_are_drawn_by_mouse_and_cleared(page):
    page.select_option("#field-data", "own")
    assert "Draw some points" in page.inner_text("#field-status")
    page.locator("#field").scroll_into_view_if_needed()
    box = page.locator("#field").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 100, middle[1], steps=10)
    page.mouse.up()
    page.mouse.move(middle[0] + 100, middle[1] + 90, steps=5)  # without a button nothing is drawn
    assert "; 11 points of data" in page.inner_text("#field-status")
    slide(page, 0)
    y, x = np.nonzero(reddish(page))
    assert np.abs(y - 300).max() < 8 and x.min() > 290
    page.click("#field-clear")
    assert "Draw some points" in page.inner_text("#field-status")
    page.locator("#field").tap()
    assert "; 1 points of data" in page.inner_text("#field-status")


def test_points_are_drawn_by_keys(page):
    page.select_option("#field-data", "own")
    page.click("#field-clear")
    page.focus("#field")
    page.keyboard.press("Home")  # is none of its keys
    for key in ("ArrowRight", "ArrowUp", "Space", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    assert "; 2 points of data" in page.inner_text("#field-status")
    assert "2 points of data" in page.get_attribute("#field", "aria-label")
    page.select_option("#field-data", "moons")  # keys and mouse draw into nothing else
    page.focus("#field")
    page.keyboard.press("Space")
    assert "; 300 points of data" in page.inner_text("#field-status")
    page.select_option("#field-data", "own")
    assert "; 2 points of data" in page.inner_text("#field-status")


def test_on_a_phone_it_fits_and_a_finger_scrolls_unless_it_draws(page):
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    action = "getComputedStyle(document.getElementById('field')).touchAction"
    assert page.evaluate(action) == "none"
    page.select_option("#field-data", "car")
    assert page.evaluate(action) == "auto"
    page.set_viewport_size({"width": 1000, "height": 900})
