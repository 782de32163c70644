"""The page that draws cars in the browser: its networks against PyTorch, and the page itself in Chromium."""

import base64
import hashlib
import importlib
import io
import json
import re
import shutil
import sys
import tarfile
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_utils import pipeline, pretrained, sampling
from diffusion_utils.data import to_float, to_uint8
from diffusion_utils.networks.text import Tokenizer

ROOT = Path(__file__).parents[1]
SITE = ROOT / "site"
PAGE = ROOT / "diffusion_utils/page"
CARS, TEXT = "stanford-cars-1m", "stanford-cars-text"
sys.path[:0] = [str(SITE), str(Path(__file__).parent)]
import build
from browsers import chromium, missing, served

onnxruntime = pytest.importorskip(
    "onnxruntime", reason="the page's networks need: pip install onnxruntime onnx onnxscript"
)
pytest.importorskip("onnxscript", reason="the page's networks need: pip install onnxruntime onnx onnxscript")
export = importlib.import_module("diffusion_utils.commands.export")  # the command of this name is its function
from diffusion_utils.commands import main
from diffusion_utils.commands import page as pages

COPY_RUNTIME = pages.copy_runtime  # tests of pages put another one in its place


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder as site/build.py makes it, without the book; the runtime is linked where it has been fetched."""
    folder = tmp_path_factory.mktemp("site")
    build.page(folder)
    if (SITE / "vendor").is_dir():
        (folder / "vendor").symlink_to(SITE / "vendor")
    build.models(folder / "models")
    return folder


@pytest.fixture(scope="module")
def address(site):
    with served(site) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    if why := missing():
        pytest.skip(why)
    if not (SITE / "vendor").is_dir():
        pytest.skip("the page's ONNX runtime for browsers is missing; to fetch it: python site/build.py vendor")
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def opened(browser, address):
    """The page, loaded once for all tests (each load draws sixteen cars), and the errors in it so far."""
    page, errors = browser.new_context(viewport={"width": 1200, "height": 900}).new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.started = time.perf_counter()
    page.goto(address + "?backend=wasm")
    wait_until_drawn(page)
    page.seconds = time.perf_counter() - page.started
    yield page, errors
    page.context.close()


@pytest.fixture
def page(opened):
    """The page as an earlier test left it; any error in it fails the test."""
    page, errors = opened
    yield page
    assert errors == []


def ask(page, model=CARS, kind="", prompt=None, count="4", seed=0, scale=None, steps=20):
    """Fill in the form by what it shows, and draw."""
    page.check(f"input[value={model}]")
    if model == CARS:
        page.select_option("#kind", kind)
    else:
        page.fill("#prompt", prompt)
    page.select_option("#count", count)
    page.fill("#seed", str(seed))
    for slider, value in (("scale", scale or 3), ("steps", steps)):
        page.fill(f"#{slider}", str(value))
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('grid').ariaBusy === 'true'")
    wait_until_drawn(page)


def wait_until_drawn(page):
    said = "document.getElementById('status').textContent"
    page.wait_for_function(f"/Nothing is picked|did not work/.test({said})", timeout=120_000)
    assert "Nothing is picked" in page.inner_text("#status"), page.inner_text("#status")


def drawn(page, step=-1):
    """The pictures of the latest drawing, uint8 (N, 3, 64, 64), and their guesses, after a step."""
    kinds = page.evaluate(
        """step => {
            const frame = state.current.frames.at(step);
            const text = bytes => btoa(Array.from(bytes, b => String.fromCharCode(b)).join(""));
            return [text(frame.noisy), text(frame.guess)];
        }""",
        step,
    )
    noisy, guess = map(base64.b64decode, kinds)
    return tuple(torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, 3, 64, 64) for raw in (noisy, guess))


def furthest(first, second):
    return int((first.int() - second.int()).abs().max())


# ---- the networks


@pytest.mark.parametrize("name", [CARS, TEXT])
def test_the_exported_network_guesses_what_the_package_guesses(site, name):
    session = onnxruntime.InferenceSession(site / "models" / f"{name}.onnx", providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    for count, t, scale in ((1, 0, 3.0), (3, 499, 1.0), (2, 975, 6.0), (2, 999, 3.0)):
        guided = pipeline.load(name).guided(range(count), guidance_scale=scale)
        x, t = torch.randn(count, 3, 64, 64, generator=generator), torch.full((count,), t)
        given = {
            "x_t": x.numpy(),
            "t": t.numpy(),
            "cond": guided.cond.numpy(),
            "guidance_scale": np.array(scale, np.float32),
        }
        with torch.no_grad():
            expected = guided(x, t).numpy()
        assert np.abs(session.run(None, given)[0] - expected).max() < 1e-4


def test_without_a_word_it_guesses_what_the_unconditional_network_guesses(site):
    session = onnxruntime.InferenceSession(site / "models" / f"{TEXT}.onnx", providers=["CPUExecutionProvider"])
    guided = pipeline.load(TEXT).guided(range(2), prompt="")
    assert not guided.cond.any()
    x, t = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.full((2,), 700)
    given = {"x_t": x.numpy(), "t": t.numpy(), "cond": guided.cond.numpy(), "guidance_scale": np.array(3, np.float32)}
    with torch.no_grad():
        assert np.abs(session.run(None, given)[0] - guided(x, t).numpy()).max() < 1e-4


@pytest.mark.parametrize("name", [CARS, TEXT])
def test_the_files_are_small_and_name_no_machine(site, name):
    graph = (site / "models" / f"{name}.onnx").read_bytes()
    assert len(graph) < 2.2 * pretrained.card(name)["parameters"] + 200_000 < 4e6  # half precision, each number once
    assert not re.search(rb"diffusion_utils|site-packages|/home/|/root/", graph)


def test_the_description_has_what_the_card_has(site):
    for name in (CARS, TEXT):
        about, card = json.loads((site / "models" / f"{name}.json").read_text()), pretrained.card(name)
        assert about["alphas_cumprod"] == pretrained.load(name).schedule.alphas_cumprod.tolist()
        assert about["parameters"] == card["parameters"] and "non-commercial" in about["licence"]
        assert {key: about[key] for key in ("sampler", "steps", "guidance_scale")} == {
            key: card["drawing"][key] for key in ("sampler", "steps", "guidance_scale")
        }
        assert about.get("words") == card["network"].get("words")
    chosen = json.loads((site / "models" / f"{CARS}.json").read_text())["chosen"]
    cond = pipeline.load(CARS).guided([0, 5, export.SEEDS - 1]).cond
    assert [chosen[seed] for seed in (0, 5, export.SEEDS - 1)] == cond.argmax(1).tolist()


@pytest.mark.parametrize(
    "name, said",
    [
        ("stanford-cars-autoencoder-4", "cannot draw from nothing"),
        ("stanford-cars-latent", "draws latents"),
        ("nothing", "no weights named"),
    ],
)
def test_export_refuses_what_it_cannot_do_and_writes_nothing(tmp_path, name, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        export.write_onnx(name, tmp_path / "models")
    assert not (tmp_path / "models").exists()


# ---- the page in Chromium


def test_sixteen_cars_are_those_that_python_draws(page, record_property):
    record_property("the page, from a cold start to sixteen cars", f"{page.seconds:.1f} s")
    ask(page, count="16")
    expected = pipeline.load(CARS)(range(16))
    assert furthest(drawn(page)[0], expected) <= 2
    # Another seed is another car: the check above can fail.
    assert furthest(drawn(page)[0][1:], expected[:-1]) > 50


def test_the_page_shows_the_steps_of_pythons_walk(page):
    ask(page, seed=3)
    walk = list(pipeline.load(CARS).trajectory(range(3, 7)))
    for step in (0, 7, 20):
        noisy, guess = drawn(page, step)
        assert furthest(noisy, to_uint8(walk[step].x_t)) <= 2
        assert furthest(guess, to_uint8(walk[step].x0)) <= 2
    # The slider looks back, by keyboard; what it shows is the frame of that step.
    before = canvas(page, "grid")
    page.focus("#step")
    page.keyboard.press("Home")
    assert page.inner_text("#step-value") == "0 of 20, t = 999"
    assert np.abs(mean_colours(canvas(page, "grid"), 4) - drawn(page, 0)[1].float().mean((2, 3)).numpy()).max() < 4
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#step-value").startswith("1 of 20")
    page.check("#noisy")
    assert np.abs(mean_colours(canvas(page, "grid"), 4) - drawn(page, 1)[0].float().mean((2, 3)).numpy()).max() < 4
    page.uncheck("#noisy")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("End")
    assert np.array_equal(canvas(page, "grid"), before)


def canvas(page, which):
    """What a canvas shows, uint8 (height, width, 3)."""
    raw, width, height = page.evaluate(
        """id => { const c = document.getElementById(id),
                   d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
                   return [btoa(Array.from(d, b => String.fromCharCode(b)).join("")), c.width, c.height]; }""",
        which,
    )
    return np.frombuffer(base64.b64decode(raw), np.uint8).reshape(height, width, 4)[..., :3]


def mean_colours(grid, count):
    """The mean colour of each of `count` cells, four in a row: (count, 3)."""
    cells = [grid[66 * (i // 4) :, 87 * (i % 4) :][:64, :85] for i in range(count)]
    return np.array([cell.reshape(-1, 3).mean(0) for cell in cells])


def test_a_prompt_draws_what_python_draws_for_it(page):
    prompt = "A shiny red 2012 BMW convertible!"
    ask(page, TEXT, prompt=prompt, seed=7, count="4")
    assert page.is_visible("#prompt") and not page.is_visible("#kind")
    assert page.inner_text("#remark") == Tokenizer(**words()).remark(prompt) == "Not learnt, so left out: shiny."
    expected = pipeline.load(TEXT)(range(7, 11), prompt=prompt)
    assert furthest(drawn(page)[0], expected) <= 2


def words():
    network = pretrained.card(TEXT)["network"]
    return {"words": network["words"], "length": network["length"]}


def test_kind_guidance_and_steps_do_what_they_say(page):
    ask(page, kind="pickup", count="1", scale=2.5, steps=7)
    assert page.is_visible("#kind") and not page.is_visible("#prompt")
    assert page.inner_text("#scale-value") == "2.5" and page.inner_text("#steps-value") == "7"
    expected = pipeline.load(CARS)([0], "pickup", guidance_scale=2.5, steps=7)
    assert furthest(drawn(page)[0], expected) <= 2


def test_the_noise_slider_puts_the_schedules_noise_on_the_cars(page):
    ask(page)
    page.focus("#t")
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    schedule = pretrained.load(CARS).schedule
    assert page.inner_text("#t-value").startswith("t = 3 · signal-to-noise ratio")
    assert f"√ᾱ = {schedule.alphas_cumprod[3].sqrt():.3f}" in page.inner_text("#t-value")
    page.keyboard.press("End")
    assert "√ᾱ = 0.000" in page.inner_text("#t-value")
    cars = to_float(drawn(page)[0][:4])
    noise = sampling.Noise(range(1_000_000, 1_000_004), (3, 64, 64))()
    shown = mean_colours(canvas(page, "noised"), 4)
    assert np.abs(shown - to_uint8(schedule.add_noise(cars, noise, 999)).float().mean((2, 3)).numpy()).max() < 4

    # With little noise the same cars come back, with much others.
    page.evaluate(
        "t => { const s = document.getElementById('t'); s.value = t; s.dispatchEvent(new Event('input')); }", 250
    )
    page.click("#again")
    page.wait_for_function("document.getElementById('grid').ariaBusy === 'true'")
    wait_until_drawn(page)
    again = to_float(drawn(page)[0][:4])
    assert (again - cars).pow(2).mean() < 0.25 * (cars.roll(1, 0) - cars).pow(2).mean()


def test_noise_timesteps_and_words_are_those_of_the_package(page):
    for seed in (0, 1, 9_984, 1_000_003):
        ours = torch.tensor(
            page.evaluate("seed => import('./draw.js').then(d => Array.from(d.randn(12288, seed)))", seed)
        )
        assert (ours - sampling.Noise([seed], (12288,))()[0]).abs().max() < 1e-5
    for seed in (2**32, -1, 0.5):  # which Python folds or refuses
        with pytest.raises(Exception, match="RangeError: no seed below"):
            page.evaluate("seed => import('./draw.js').then(d => d.randn(16, seed))", seed)
    for steps in range(1, 1001, 37):
        assert page.evaluate("n => import('./draw.js').then(d => d.timesteps(1000, n))", steps) == sampling.timesteps(
            1000, steps
        )
    tokenizer = Tokenizer(**words())
    for text in ("a red 2012 BMW convertible", "", "Rolls-Royce_Ghost, été", "red " * 30, "zebra zebra"):
        asked = (
            "([text, words, length]) => import('./draw.js')"
            ".then(d => [d.encode(text, words, length), d.remark(text, words, length)])"
        )
        assert page.evaluate(asked, [text, *words().values()]) == [
            tokenizer.encode([text])[0].tolist(),
            tokenizer.remark(text),
        ]


def test_it_fits_a_phone_and_every_control_has_a_name(page):
    ask(page, count="1")
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.set_viewport_size({"width": 1200, "height": 900})
    nameless = page.evaluate(
        """[...document.querySelectorAll("input, select, button, canvas, progress")].filter(
            e => !(e.labels?.length || e.ariaLabel || (e.tagName === "BUTTON" && e.textContent.trim())))
            .map(e => e.id)"""
    )
    assert nameless == []
    assert "drawn from noise" in page.get_attribute("#grid", "aria-label")


def test_it_opens_and_draws_without_network_once_it_has_been_loaded(page, site, address):
    page.evaluate("navigator.serviceWorker.ready")
    page.wait_for_function("caches.open('cars').then(c => c.keys()).then(all => all.length)")
    kept = page.evaluate("caches.open('cars').then(c => c.keys()).then(all => all.map(request => request.url))")
    pinned = [f"vendor/{name}" for name in build.MANIFEST["runtimes"]["wasm"]]
    networks = [f"models/{name}.{kind}" for name in (CARS, TEXT) for kind in ("json", "onnx")]
    files = {path.name for path in site.iterdir() if path.is_file()} - {"index.html"}
    assert {url.removeprefix(address) for url in kept} == {"", *files, *networks, *pinned}
    page.context.set_offline(True)
    page.goto(page.url.replace("/?", "/index.html?"))
    wait_until_drawn(page)
    page.context.set_offline(False)


def test_only_the_last_of_several_requests_is_drawn(page):
    for seed in (11, 12, 13):
        page.fill("#seed", str(seed))
        page.select_option("#count", "1")
        page.click("button[type=submit]")
    page.wait_for_function("/seeds from 13/.test(document.getElementById('status').textContent)", timeout=60_000)
    expected = pipeline.load(CARS)([13])
    assert furthest(drawn(page)[0], expected) <= 2
    page.wait_for_timeout(500)  # an older drawing that went on would ask for more now
    assert page.evaluate("state.current.request.seeds") == [13] and page.evaluate("state.current.done")
    assert page.evaluate("state.waiting.length + state.workers.filter(({ job }) => job).length") == 0


def test_a_seed_out_of_range_is_refused(page):
    before = page.inner_text("#status")
    page.fill("#seed", "20000")
    page.click("button[type=submit]")
    assert page.evaluate("document.getElementById('seed').validity.rangeOverflow")
    assert page.inner_text("#status") == before
    page.fill("#seed", "0")


def test_a_missing_network_is_one_clear_sentence(browser, site, tmp_path):
    for path in site.glob("*.*"):
        shutil.copy(path, tmp_path)
    with served(tmp_path) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_function("/python site.build.py/.test(document.getElementById('status').textContent)")
        page.close()


def test_the_manifest_names_what_the_form_offers_and_the_whole_page_but_the_books_files(site):
    assert re.findall(r'name="model" value="([^"]+)"', (site / "index.html").read_text()) == build.MANIFEST["models"]
    packaged = {path.name for path in PAGE.iterdir()} - {"own.html"}
    assert packaged | {"index.html", "field.js"} == {*build.MANIFEST["page"]}
    assert {path.name for path in site.iterdir() if path.is_file()} == {*build.MANIFEST["page"]}


def test_the_page_links_to_every_notebook_where_the_project_lives(site):
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    colab = repository.replace("https://github.com", "https://colab.research.google.com/github")
    text = (site / "index.html").read_text()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for link in (
            f"book/{path.stem}.html",
            f"{colab}/blob/main/notebooks/{path.name}",
            f"{repository}/blob/main/notebooks/{path.name}",
        ):
            assert f'"{link}"' in text
    assert set(re.findall(r"https://[^\"<]*", text)) <= {repository} | set(
        re.findall(rf"(?:{re.escape(repository)}|{re.escape(colab)})/[^\"]*", text)
    )


def test_no_page_loads_anything_from_elsewhere():
    for path in (*SITE.glob("*.js"), *PAGE.iterdir(), SITE / "book.css"):
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg|localhost)", path.read_text()), path.name


# ---- a page around one's own network


@pytest.fixture(scope="module")
def runtime():
    """Stands in for the runtime that would be fetched: the one beside the project's page, or empty files."""

    def put(folder):
        folder.mkdir()
        for name in sum(pages.manifest()["runtimes"].values(), []):
            if (SITE / "vendor").is_dir():
                shutil.copyfile(SITE / "vendor" / name, folder / name)
            else:
                (folder / name).touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "copy_runtime", put)
        yield


OWN = {
    "cats": {"conditions": {"cat": 1, "<dog>": 3}, "aspect": "3:2", "size": 16},
    "things": {"size": 8, "data": "own pictures, 300 cropped to 8×8"},
}


@pytest.fixture(scope="module")
def own(tmp_path_factory, tiny_weights, runtime):
    """Pages by name, each with its weights: of a network with classes, and of one without."""
    folder, found = tmp_path_factory.mktemp("own"), {}
    for name, card in OWN.items():
        (folder / "runs" / name).mkdir(parents=True)
        weights = tiny_weights(folder / "runs" / name / "weights.safetensors", **card, num_train_timesteps=1000)
        assert main(["export", "--weights", str(weights), "--page", str(folder / name)]) == 0
        found[name] = folder / name, weights
    return found


def test_an_own_page_holds_all_that_its_manifest_names_and_says_what_it_draws(own):
    for name, (folder, _) in own.items():
        contents = json.loads((folder / "manifest.json").read_text())
        models = [f"models/network.{ending}" for ending in ("json", "onnx")]
        vendor = [f"vendor/{file}" for files in contents["runtimes"].values() for file in files]
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert files == {*contents["page"], *models, *vendor}
        index = (folder / "index.html").read_text()
        assert f"<h1>{name}</h1>" in index and "$" not in re.sub(r"<script>.*?</script>", "", index, flags=re.DOTALL)
    assert "trained on 300 pictures of 8×8" in index and '<p hidden><label for="kind">' in index


@pytest.mark.parametrize("name", OWN)
def test_an_own_page_draws_what_python_draws_at_its_own_aspect(browser, own, name):
    folder, weights = own[name]
    with served(folder) as address:
        page, errors, how = browser.new_page(), [], {}
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address + "?backend=wasm")
        wait_until_drawn(page)
        if name == "cats":
            menu = page.eval_on_selector_all("#kind option", "all => all.map(one => one.value)")
            assert menu == ["", "cat", "<dog>"] and page.is_visible("#scale")
            page.select_option("#kind", "<dog>")
            page.fill("#scale", "2.5")
            how = {"condition": "<dog>", "guidance_scale": 2.5}
        else:
            assert not page.is_visible("#kind") and not page.is_visible("#scale")
        page.fill("#seed", "5")
        page.click("button[type=submit]")
        page.wait_for_function("/seeds from 5/.test(document.getElementById('status').textContent)", timeout=60_000)
        pipe = pipeline.load(str(weights))
        expected = pipe(range(5, 21), **how)
        found = page.evaluate("Array.from(state.current.frames.at(-1).noisy)")
        found = torch.tensor(found, dtype=torch.uint8).reshape(expected.shape)
        assert furthest(found, expected) <= 2 and furthest(found[1:], expected[:-1]) > 20
        width, height = (page.evaluate(f"document.getElementById('grid').{side}") for side in ("width", "height"))
        assert (width, height) == (4 * round(64 * pipe.aspect) + 3 * 2, 4 * 64 + 3 * 2)
        assert "16 pictures in" in page.inner_text("#status") and errors == []
        page.close()


def test_a_page_replaces_a_page_and_nothing_else(own, tmp_path, capsys):
    folder, weights = own["things"]
    (folder / "models/old.onnx").touch()
    export.export((str(weights),), page=folder)
    assert not (folder / "models/old.onnx").exists() and (folder / "models/network.onnx").exists()
    (folder / "CNAME").touch()  # the user's own
    with pytest.raises(ValueError, match=r"holds something that is no such page \(CNAME\)"):
        export.export((str(weights),), page=folder)
    assert (folder / "CNAME").exists()
    (folder / "CNAME").unlink()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    for arguments, said in (
        (["--page", tmp_path / "photos"], "holds something that is no such page"),
        (["--page", tmp_path / "a", "--out", tmp_path / "b"], "--out FOLDER for the networks alone, or --page"),
        ([], "say where to"),
        (["--page", tmp_path / "a.html"], "is to be a folder"),
    ):
        assert main(["export", "--weights", str(weights), *map(str, arguments)]) == 1
        assert said in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}


@pytest.mark.parametrize(
    "card, named",
    [
        ({"drawing": {"sampler": "ddim"}}, "draws by ddim"),
        ({"drawing": {"sampler": "dpm_solver_pp", "timestep_spacing": "linspace"}}, "trailing and clipped, alone"),
        ({"size": 10}, "multiples of 4"),
        ({"num_train_timesteps": 100}, "1000 timesteps"),
    ],
)
def test_a_page_refuses_what_it_would_draw_in_another_way(tmp_path, tiny_weights, card, named):
    weights = tiny_weights(tmp_path / "mine.safetensors", **{"num_train_timesteps": 1000, "size": 8} | card)
    with pytest.raises(ValueError, match=named):
        export.export((str(weights),), page=tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_sliders_of_an_own_page_reach_what_its_network_is_advised():
    about = {"parameters": 1, "guidance_scale": 7.5, "steps": 100, "guided": True}
    index = pages.own_index("mine", about)
    assert 'max="7.5" step="0.1" value="7.5"' in index and 'min="2" max="100" value="100"' in index
    assert 'min="1" max="50" value="1"' in pages.own_index("mine", about | {"steps": 1})


def test_the_runtime_is_fetched_once_checked_and_kept(tmp_path, monkeypatch):
    archive, names = io.BytesIO(), sum(pages.manifest()["runtimes"].values(), [])
    with tarfile.open(fileobj=archive, mode="w:gz") as files:
        for name in names:
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            files.addfile(entry, io.BytesIO(name.encode()))
    place = tmp_path / "registry" / pages.RUNTIME / "-" / f"{pages.RUNTIME}-{pages.VERSION}.tgz"
    place.parent.mkdir(parents=True)
    place.write_bytes(archive.getvalue())
    monkeypatch.setenv("DIFFUSION_UTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda name: None)  # a machine without npm
    with served(tmp_path / "registry") as address:
        monkeypatch.setenv(pages.REGISTRY, address)
        with pytest.raises(OSError, match="is another file, or damaged"):
            COPY_RUNTIME(tmp_path / "vendor")
        digest = hashlib.sha512(archive.getvalue()).digest()
        monkeypatch.setattr(pages, "SHA512", base64.b64encode(digest).decode())
        COPY_RUNTIME(tmp_path / "vendor")
    assert {path.name: path.read_text() for path in (tmp_path / "vendor").iterdir()} == {n: n for n in names}
    COPY_RUNTIME(tmp_path / "again")  # from the cache: nothing is served any more
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(OSError, match="could not be fetched .*: it takes network, this once"):
        COPY_RUNTIME(tmp_path / "never")
    assert not (tmp_path / "never").exists()
