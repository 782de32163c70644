"""What the reader sees after moving a slider is exactly what the slider's number means."""

import io

import ipywidgets
import matplotlib.figure
import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_utils.data import to_uint8
from diffusion_utils.plotting import picture_grid, widgets
from diffusion_utils.schedule import cosine


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def steps():
    """Four steps of a make-believe sampler."""
    generator = torch.Generator().manual_seed(2)
    return [
        (t, torch.randn(2, 3, 16, 16, generator=generator), torch.randn(2, 3, 16, 16, generator=generator))
        for t in (900, 500, 100, -1)
    ]


def decoded(png):
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def test_encode_loses_nothing():
    picture = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    assert (decoded(widgets.encode(picture)) == picture).all()


@pytest.mark.parametrize("picture", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)])
def test_encode_refuses_what_is_no_picture(picture):
    with pytest.raises(ValueError, match="uint8 array"):
        widgets.encode(picture)


def test_frame_slider_shows_frame_and_label_of_its_value():
    frames = [widgets.encode(np.full((4, 4, 3), grey, np.uint8)) for grey in (0, 100, 200)]
    box = widgets.frame_slider(frames, ["black", "grey", "light"], "shade", width=80)
    slider, label, image = box.children
    assert isinstance(box, ipywidgets.VBox) and isinstance(slider, ipywidgets.IntSlider)
    assert (slider.min, slider.max, slider.description) == (0, 2, "shade")
    assert (label.value, image.value, image.format) == ("black", frames[0], "png")
    assert (image.layout.width, image.layout.max_width) == ("80px", "calc(100% - 4px)")
    for k, text in ((2, "light"), (1, "grey"), (0, "black")):
        slider.value = k
        assert (label.value, image.value) == (text, frames[k])


def test_frame_slider_asks_only_for_the_frames_it_shows():
    asked = []
    box = widgets.frame_slider(lambda k: asked.append(k) or b"png%d" % k, str, "k", count=1000)
    slider, label, image = box.children
    slider.value = 700
    assert asked == [0, 700]
    assert (label.value, image.value) == ("700", b"png700")


def test_frame_slider_refuses():
    with pytest.raises(ValueError, match="no frames"):
        widgets.frame_slider([], [], "k")
    with pytest.raises(ValueError, match="`count`"):
        widgets.frame_slider(lambda k: b"", str, "k")
    with pytest.raises(ValueError, match="1 labels for 2 frames"):
        widgets.frame_slider([b"a", b"b"], ["a"], "k")


@pytest.mark.parametrize("aspect", [1, 4 / 3])
def test_noise_slider_shows_exactly_the_pictures_at_t(images, aspect):
    schedule = cosine(100)
    box = widgets.noise_slider(images, schedule, seed=7, columns=2, aspect=aspect)
    slider, _, image = box.children
    assert (slider.min, slider.max, slider.value, slider.description) == (0, 99, 0, "t")
    assert slider.continuous_update
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(7))
    seen = set()
    for t in (0, 99, 40, 41, 0):
        slider.value = t
        expected = to_uint8(schedule.add_noise(images, noise, t))
        assert (decoded(image.value) == picture_grid(expected, columns=2, aspect=aspect)).all()
        seen.add(image.value)
    assert len(seen) == 4  # each t looks different, and t = 0 twice the same


def test_noise_slider_label_has_the_numbers_of_t(images):
    slider, label, _ = widgets.noise_slider(images, cosine(1000)).children
    slider.value = 250
    schedule = cosine(1000)
    snr = float(schedule.snr()[250])
    share = float(schedule.alphas_cumprod[250] ** 0.5)
    assert "t = 250<" in label.value
    assert f"signal-to-noise ratio {snr:.3g} ({10 * np.log10(snr):.1f} dB)".replace("(-", "(−") in label.value
    assert f"√ᾱ = {share:.3f}" in label.value
    slider.value = 900
    assert "t = 900<" in label.value and f"{share:.3f}" not in label.value


def test_noise_slider_reaches_pure_noise(images):
    slider, label, _ = widgets.noise_slider(images, cosine(10).rescale_zero_terminal_snr()).children
    slider.value = 9
    assert "ratio 0 (−∞ dB)" in label.value and "√ᾱ = 0.000" in label.value


def test_noise_slider_seed_decides_the_noise(images):
    shown = [widgets.noise_slider(images, cosine(10), seed).children[2].value for seed in (0, 0, 1)]
    assert shown[0] == shown[1] != shown[2]


def test_noise_slider_leaves_the_readers_pictures_and_random_numbers_alone(images):
    before, state = images.clone(), torch.get_rng_state()
    slider, _, _ = widgets.noise_slider(images, cosine(10)).children
    slider.value = 9
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)


def test_noise_slider_refuses(images):
    with pytest.raises(ValueError, match="data.to_float"):
        widgets.noise_slider(to_uint8(images), cosine(10))
    with pytest.raises(ValueError, match=r"image\[None\]"):
        widgets.noise_slider(images[0], cosine(10))


def test_noise_slider_stays_light(monkeypatch):
    """No matplotlib figure per frame (over 100 ms), and little to send: Colab is far away."""
    slider, _, image = widgets.noise_slider(torch.rand(8, 3, 64, 64) * 2 - 1, cosine(1000)).children
    monkeypatch.setattr(matplotlib.figure.Figure, "__init__", None)
    slider.value = 999
    assert len(image.value) < 150_000


def test_scrubber_shows_each_step_beside_its_guess(steps):
    box = widgets.scrubber(steps, columns=1)
    controls, label, image = box.children
    play, slider = controls.children
    assert isinstance(play, ipywidgets.Play) and isinstance(slider, ipywidgets.IntSlider)
    assert (slider.min, slider.max, slider.description) == (0, 3, "step")
    assert (play.min, play.max) == (0, 3)
    for k in (0, 3, 1, 2):
        slider.value = k
        t, x_t, x0 = steps[k]
        left, right = picture_grid(x_t, columns=1), picture_grid(x0, columns=1)
        picture = decoded(image.value)
        assert (picture[:, : left.shape[1]] == left).all()
        assert (picture[:, -right.shape[1] :] == right).all()
        assert picture.shape[1] == left.shape[1] + 16 + right.shape[1]
        assert f"step {k} of 3" in label.value
        assert ("finished" if t == -1 else f"t = {t}<") in label.value
        assert "left: x<sub>t</sub>" in label.value and "right: x̂₀" in label.value


def test_scrubber_takes_a_sampler_that_yields(steps):
    _, _, image = widgets.scrubber(step for step in steps).children
    assert image.value == widgets.scrubber(steps).children[2].value


def test_play_moves_the_slider(steps, monkeypatch):
    links = []
    monkeypatch.setattr(ipywidgets, "jslink", lambda *ends: links.append(ends))
    play, slider = widgets.scrubber(steps).children[0].children
    assert links == [((play, "value"), (slider, "value"))]


def test_scrubber_makes_each_frame_once(steps, monkeypatch):
    calls = []
    encode = widgets.encode
    monkeypatch.setattr(widgets, "encode", lambda picture: calls.append(1) or encode(picture))
    _, slider = widgets.scrubber(steps).children[0].children
    assert len(calls) == 1  # the rest are made when asked for
    for k in (1, 2, 1, 0, 2, 1):
        slider.value = k
    assert len(calls) == 3


def test_scrubber_refuses(steps):
    with pytest.raises(ValueError, match="no steps"):
        widgets.scrubber([])
    t, x_t, x0 = steps[1]
    with pytest.raises(ValueError, match=r"at t = 500 x_t has shape .* x0 \(1, 3, 16, 16\)"):
        widgets.scrubber([steps[0], (t, x_t, x0[:1])])


def test_pictures_are_enlarged_by_the_browser_but_fit_the_page(images, steps):
    # Two 16x16 pictures at 4:3, 21 + 1 + 21 pixels wide, are shown 128 pixels high.
    image = widgets.noise_slider(images, cosine(10), columns=2).children[2]
    assert image.layout.width == f"{43 * 8}px"
    assert widgets.scrubber(steps).children[2].layout.width == "760px"


@pytest.fixture
def asked():
    return []


@pytest.fixture
def box(asked, images):
    def draw(prompt, scale, seed):
        asked.append((prompt, scale, seed))
        return torch.full((2, 3, 16, 16), len(prompt) / 100 + seed / 10)

    return widgets.prompt_box(draw, "a red van", scale=3, seed=1, remark=lambda p: "what <is> zebra?" * ("zebra" in p))


def test_the_prompt_box_draws_at_once_and_after_every_change(box, asked):
    (text, slider, number), label, image = box.children[0].children, *box.children[1:]
    assert asked == [("a red van", 3.0, 1)]
    text.value = "a blue van"
    slider.value = 5
    number.value = 7
    assert asked[1:] == [("a blue van", 3.0, 1), ("a blue van", 5.0, 1), ("a blue van", 5.0, 7)]
    expected = picture_grid(torch.full((2, 3, 16, 16), 0.1 + 0.7), 4)
    assert np.array_equal(decoded(image.value), expected)
    assert all(part in label.value for part in ("a blue van", "w = 5", "seed 7"))


def test_the_prompt_box_says_what_it_did_not_understand_and_runs_nothing_that_is_typed(box):
    (text, *_), label, _ = box.children[0].children, *box.children[1:]
    assert "zebra" not in label.value
    text.value = "a <b>zebra</b> <script>"
    assert "<script>" not in label.value and "&lt;script&gt;" in label.value
    assert "what &lt;is&gt; zebra?" in label.value
    text.value = "  "
    assert "(no prompt)" in label.value


def test_the_prompt_box_waits_for_enter_and_for_the_slider_to_be_let_go(box):
    text, slider, _ = box.children[0].children
    assert not text.continuous_update and not slider.continuous_update and slider.min == 0


def test_the_prompt_box_fits_the_page(images):
    box = widgets.prompt_box(lambda *_: images.repeat(4, 1, 1, 1), "", columns=8)
    assert int(box.children[2].layout.width.removesuffix("px")) <= widgets.WIDEST
    small = widgets.prompt_box(lambda *_: images[:1], "", height=100)
    assert small.children[2].layout.width == "131px"  # 16 × 21 pixels, 100 high


def test_a_widget_whose_function_fails_says_so_and_goes_on(images):
    def draw(prompt, scale, seed):
        if prompt == "stop":
            raise KeyboardInterrupt
        if "<b>" in prompt:
            raise ValueError(f"no {prompt} here")
        return images.numpy() if prompt == "array" else images

    box = widgets.prompt_box(draw, "a <b> car")
    (text, _, _), label = box.children[0].children, box.children[1]
    assert label.value == "this did not work: no a &lt;b&gt; car here"
    text.value = "car"
    assert "<b>car</b>" in label.value
    text.value = "array"
    assert "expected a tensor of pictures, not ndarray" in label.value
    with pytest.raises(KeyboardInterrupt):
        text.value = "stop"
    assert label.value == "interrupted"

    box = widgets.frame_slider([b"a", b"b"], lambda k: str(1 // k), "k")
    slider, label, _ = box.children
    assert "division" in label.value
    slider.value = 1
    assert label.value == "1"
