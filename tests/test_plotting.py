"""Pictures land where they should, unaltered; figures say what they show; errors say what to do."""

import importlib
import io
import math
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_utils import networks, plotting
from diffusion_utils.data import to_float, to_uint8
from diffusion_utils.schedule import Schedule, cosine, linear

RED, GREEN, BLUE, BLACK, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (102, 102, 102)
WHITE = (255, 255, 255)


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    """Figures left open pile up in a notebook, and the inline backend draws them twice."""
    before = dict(matplotlib.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def plain(*colours, height=16, width=16):
    """A uint8 batch of one-coloured pictures."""
    batch = torch.tensor(colours, dtype=torch.uint8)
    return batch[:, :, None, None].expand(-1, -1, height, width).contiguous()


def pixels(figure):
    """What the figure looks like, uint8 [height, width, 3]."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with Image.open(buffer) as picture:
        return np.asarray(picture)[..., :3]


def assert_whole(region, colour):
    assert region.size and (region == colour).all(), f"not all {colour}"


def test_cells_lie_where_they_should():
    grid = plotting.picture_grid(plain(RED, GREEN, BLUE, BLACK, GREY), columns=3, scale=4)
    height, width, gap = 64, 85, 2  # 16 · 4; 64 · 4/3 rounded; 64 / 32
    assert grid.shape == (2 * height + gap, 3 * width + 2 * gap, 3)
    assert grid.dtype == np.uint8
    below, second, third = height + gap, width + gap, 2 * (width + gap)
    assert_whole(grid[:height, :width], RED)
    assert_whole(grid[:height, second : second + width], GREEN)
    assert_whole(grid[:height, third:], BLUE)
    assert_whole(grid[below:, :width], BLACK)
    assert_whole(grid[below:, second : second + width], GREY)
    assert_whole(grid[height:below], WHITE)  # between the rows
    assert_whole(grid[:, width:second], WHITE)  # between the columns
    assert_whole(grid[below:, third:], WHITE)  # the cell that has no picture


def test_fewer_pictures_than_columns_make_a_narrow_grid():
    grid = plotting.picture_grid(plain(RED, BLUE), columns=8, aspect=1)
    assert grid.shape == (16, 33, 3)
    assert_whole(grid[:, :16], RED), assert_whole(grid[:, 16:17], WHITE), assert_whole(grid[:, 17:], BLUE)


@pytest.mark.parametrize(
    "aspect, scale, shape", [(4 / 3, 1, (64, 85)), (1, 1, (64, 64)), (4 / 3, 2, (128, 171)), (2, 0.5, (32, 64))]
)
def test_aspect_and_scale(aspect, scale, shape):
    images = plain(RED, height=64, width=64)
    images[:, :, 32:, :32] = torch.tensor(BLUE)[:, None, None]
    grid = plotting.picture_grid(images, aspect=aspect, scale=scale)
    assert grid.shape[:2] == shape
    height, width = shape  # the quarter keeps its place; at its border the colours mix
    assert_whole(grid[: int(0.4 * height)], RED), assert_whole(grid[:, int(0.6 * width) :], RED)
    assert_whole(grid[int(0.6 * height) :, : int(0.4 * width)], BLUE)


def test_the_height_of_a_wide_picture_stays():
    images = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8)
    assert (plotting.picture_grid(images) == images[0].permute(1, 2, 0).numpy()).all()  # 4:3 already


def test_a_grid_at_its_own_size_holds_the_very_pixels():
    images = torch.rand(2, 3, 16, 16) * 2.4 - 1.2  # some outside [-1, 1]: clipped
    grid = plotting.picture_grid(images, aspect=1)
    expected = to_uint8(images).permute(0, 2, 3, 1).numpy()
    assert (grid[:, :16] == expected[0]).all() and (grid[:, 17:] == expected[1]).all()


def test_float_and_uint8_give_the_same_grid():
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    of_uint8 = plotting.picture_grid(images)
    assert (of_uint8 == plotting.picture_grid(to_float(images))).all()
    assert (of_uint8 == plotting.picture_grid(to_float(images).requires_grad_())).all()


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(0, 3, 8, 8), "no pictures"),
        (torch.zeros(3, 8, 8), r"pass image\[None\]"),
        (torch.zeros(2, 1, 8, 8), r"shape \(N, 3, H, W\), not \(2, 1, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3), r"not \(2, 8, 8, 3\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "torch.int64"),
    ],
)
def test_what_is_no_batch_of_pictures_is_refused(images, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plotting.picture_grid(images)
    with pytest.raises(ValueError, match=message):
        plotting.show_grid(images)
    with pytest.raises(ValueError, match=message):
        plotting.save_grid(images, tmp_path / "new" / "grid.png")
    assert not (tmp_path / "new").exists()


def test_an_array_is_no_tensor():
    for width in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="width must be above 0 inches"):
            plotting.show_grid(plain(RED), width=width)
    with pytest.raises(TypeError, match="not ndarray"):
        plotting.picture_grid(np.zeros((2, 3, 8, 8)))


@pytest.mark.parametrize("wrong", [{"columns": 0}, {"columns": 2.5}, {"aspect": 0}, {"scale": -1}])
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plotting.picture_grid(plain(RED), **wrong)


def test_save_grid_writes_the_grid_and_nothing_else(tmp_path):
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    path = tmp_path / "new" / "grid.png"
    plotting.save_grid(images, path, columns=2, scale=3)
    with Image.open(path) as stored:
        assert stored.format == "PNG"
        assert (np.asarray(stored) == plotting.picture_grid(images, columns=2, scale=3)).all()
    assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_save_grid_writes_a_jpeg_where_the_name_says_so(tmp_path):
    images = plain(RED, GREEN, BLUE, GREY)
    noise = torch.randint(0, 2, (64, 3, 64, 64), dtype=torch.uint8) * 255  # more bytes than Pillow's buffer takes
    plotting.save_grid(noise, tmp_path / "noise.JPEG", aspect=1, scale=1)
    with Image.open(tmp_path / "noise.JPEG") as saved:
        assert saved.format == "JPEG"
    plotting.save_grid(images, tmp_path / "grid.jpg", columns=2)
    with Image.open(tmp_path / "grid.jpg") as saved:
        assert saved.format == "JPEG"
        stored, grid = np.asarray(saved).astype(int), plotting.picture_grid(images, 2, scale=2)
    assert stored.shape == grid.shape and np.abs(stored - grid).mean() < 8  # it blurs the edges, no more
    assert np.abs(stored[8, 8] - RED).max() < 8 and np.abs(stored[-8, -8] - GREY).max() < 8


def test_save_grid_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    plotting.save_grid(plain(RED), path)
    before = path.read_bytes()

    def full_disk(self, file, **options):
        file.write_bytes(b"half of")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        plotting.save_grid(plain(GREEN), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_show_grid_shows_each_picture_in_its_place():
    figure = plotting.show_grid(plain(RED, GREEN, BLUE, BLACK), columns=2, title="Four colours")
    assert figure.get_suptitle() == "Four colours"
    seen = pixels(figure)
    grid = figure.axes[0].get_images()[0].get_array()
    assert (seen[-grid.shape[0] :] == grid).all()  # pixel for pixel, under the title
    height, width = grid.shape[:2]
    assert tuple(grid[height // 4, width // 4]) == RED
    assert tuple(grid[height // 4, 3 * width // 4]) == GREEN
    assert tuple(grid[3 * height // 4, width // 4]) == BLUE
    assert tuple(grid[3 * height // 4, 3 * width // 4]) == BLACK


def test_titles_stand_above_their_pictures():
    titles = ["a red pickup facing left at night", "", "blue"]
    figure = plotting.show_grid(plain(RED, GREEN, BLUE), columns=2, titles=titles)
    axes = figure.axes[0]
    assert [text.get_text().replace("\n", " ") for text in axes.texts] == titles
    assert "\n" in axes.texts[0].get_text()  # too long for one line
    grid = axes.get_images()[0].get_array()
    for text, colour in zip(axes.texts, (RED, GREEN, BLUE)):
        x, y = (int(value) for value in text.xy)
        assert tuple(grid[y + 2, x]) == colour  # the picture begins where the title stands
        assert tuple(grid[y - 2, x]) == WHITE
    figure.canvas.draw()
    inside = figure.bbox.padded(1)
    for text in axes.texts:  # nothing is cut off
        box = text.get_window_extent()
        assert box.y1 <= inside.y1 and box.x0 >= inside.x0 and box.x1 <= inside.x1
    with pytest.raises(ValueError, match="2 titles for 3 pictures"):
        plotting.show_grid(plain(RED, GREEN, BLUE), titles=["one", "two"])


def test_width_is_the_readers_choice_and_small_by_default():
    assert plotting.show_grid(plain(*[RED] * 16)).get_figwidth() == pytest.approx(7, abs=0.2)
    assert plotting.show_grid(plain(RED)).get_figwidth() < 2
    assert plotting.show_grid(plain(RED), width=4).get_figwidth() == pytest.approx(4, abs=0.2)


def test_strip_labels_stand_at_their_rows_and_columns():
    rows = [plain(RED, GREEN, BLUE), [image for image in to_float(plain(BLACK, GREY, RED))]]
    figure = plotting.strip(rows, ["t = 0", "t = 250", "t = 999"], ["first", "second"], title="Noise")
    axes = figure.axes[0]
    assert figure.get_suptitle() == "Noise"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["t = 0", "t = 250", "t = 999"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    grid = axes.get_images()[0].get_array()
    at = [[tuple(grid[round(y), round(x)]) for x in axes.get_xticks()] for y in axes.get_yticks()]
    assert at == [[RED, GREEN, BLUE], [BLACK, GREY, RED]]
    height, width = grid.shape[:2]
    assert axes.get_xticks()[1] == pytest.approx(width / 2 - 0.5)
    assert axes.get_yticks().mean() == pytest.approx(height / 2 - 0.5)
    seen = pixels(figure)
    assert (seen[-height:, -width:] == grid).all()
    assert (seen[:, :-width] < 128).any() and (seen[:-height] < 128).any()  # labels are drawn


def test_strip_without_row_labels_has_no_margin_for_them():
    figure = plotting.strip([plain(RED, GREEN)], ["a", "b"])
    assert len(figure.axes[0].get_yticks()) == 0
    assert pixels(figure).shape[1] == figure.axes[0].get_images()[0].get_array().shape[1]


@pytest.mark.parametrize(
    "rows, columns, labels, message",
    [
        ([], [], None, "no pictures"),
        ([[]], [], None, "no pictures"),
        ([plain(RED), plain(RED, RED)], ["a"], None, r"rows of \[1, 2\] pictures"),
        ([plain(RED, RED)], ["a"], None, "1 column_labels for 2 columns"),
        ([plain(RED)], ["a"], ["x", "y"], "2 row_labels for 1 rows"),
    ],
)
def test_a_strip_that_cannot_be_is_refused(rows, columns, labels, message):
    with pytest.raises(ValueError, match=message):
        plotting.strip(rows, columns, labels)


def test_schedule_curves_draw_signal_snr_and_beta():
    schedules = {"linear": linear(1000), "zero end": cosine(200).rescale_zero_terminal_snr()}
    figure = plotting.schedule_curves(schedules)
    signal, snr, beta = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["√ᾱ", "log₁₀ SNR", "β"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"t / T"}
    assert beta.get_yscale() == "log"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["linear, T = 1000", "zero end, T = 200"]
    for place, schedule in enumerate(schedules.values()):
        t = 50
        for axes, y in (
            (signal, schedule.alphas_cumprod.sqrt()),
            (snr, schedule.snr().log10()),
            (beta, schedule.betas),
        ):
            line = axes.get_lines()[place]
            assert len(line.get_xdata()) == schedule.num_train_timesteps
            assert line.get_xdata()[t] == t / schedule.num_train_timesteps
            assert line.get_ydata()[t] == pytest.approx(float(y[t]))
    assert np.isnan(snr.get_lines()[1].get_ydata()[-1])  # no signal left: -∞
    assert np.isfinite(snr.get_ylim()).all()
    pixels(figure)  # it can be drawn


def test_schedule_curves_take_any_schedule():
    figure = plotting.schedule_curves({"one": Schedule(torch.tensor([0.5], dtype=torch.float64))})
    (signal,), (snr,), (beta,) = (axes.get_lines()[0].get_ydata() for axes in figure.axes)
    assert (signal, snr, beta) == pytest.approx((0.5**0.5, 0, 0.5))
    pixels(figure)
    with pytest.raises(ValueError, match="schedules must be a dict"):
        plotting.schedule_curves({})
    with pytest.raises(ValueError, match="schedules must be a dict"):
        plotting.schedule_curves(cosine(10))


def test_loss_curves_smooth_without_starting_at_zero():
    log = [{"images": 64 * i, "seconds": i / 2, "loss": loss} for i, loss in enumerate((4, 2, 3), 1)]
    figure = plotting.loss_curves({"x₀": log, "ε": log[:2]}, smooth=0.5)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("pictures seen", "loss")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["x₀", "ε"]
    smooth, raw, shorter, _ = axes.get_lines()
    assert list(smooth.get_xdata()) == [64, 128, 192]
    assert list(smooth.get_ydata()) == pytest.approx([4, (2 + 2) / 1.5, (3 + 1 + 1) / 1.75])
    assert list(raw.get_ydata()) == [4, 2, 3]
    assert raw.get_color() == smooth.get_color() != shorter.get_color()


def test_loss_curves_against_time_without_smoothing():
    log = [{"images": 64, "seconds": 2.5, "loss": 1.0}, {"images": 99, "seconds": 4, "loss": 0.5}]
    (axes,) = plotting.loss_curves({"run": log}, smooth=0, x="seconds", logy=False).axes
    assert axes.get_yscale() == "linear" and "seconds" in axes.get_xlabel()
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [2.5, 4] and list(line.get_ydata()) == [1.0, 0.5]


@pytest.mark.parametrize(
    "logs, options, message",
    [
        ({}, {}, "logs must be a dict"),
        ({"new": []}, {}, "'new' needs at least one record"),
        ({"odd": [{"step": 1, "loss": 2}]}, {}, '\'odd\' needs .* "images" and "loss"'),
        ({"a": [{"images": 1, "loss": 2}]}, {"smooth": 1}, "smooth must lie in"),
        ({"a": [{"images": 1, "loss": 2}]}, {"x": "steps"}, '"images" or "seconds"'),
    ],
)
def test_loss_curves_refuse(logs, options, message):
    with pytest.raises(ValueError, match=message):
        plotting.loss_curves(logs, **options)


def test_curves_draw_lines_and_floor():
    x = torch.tensor([1, 10, 100])
    lines = {"x₀": torch.tensor([0.1, 0.2, 0.4]), "ε": [1.0, float("nan"), 3.0]}
    figure = plotting.curves(
        x, lines, "t", "error", logx=True, logy=True, floor=0.05, floor_label="best", title="Error"
    )
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("t", "error", "Error")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["x₀", "ε", "best"]
    first, _, floor = axes.get_lines()
    assert list(first.get_xdata()) == [1, 10, 100]
    assert list(first.get_ydata()) == pytest.approx([0.1, 0.2, 0.4])
    assert set(floor.get_ydata()) == {0.05}
    pixels(figure)
    (plain_axes,) = plotting.curves([0, 1], {"y": [-1, 0]}, "x", "y").axes
    assert (plain_axes.get_xscale(), plain_axes.get_yscale()) == ("linear", "linear")
    assert len(plain_axes.get_lines()) == 1  # no floor


@pytest.mark.parametrize(
    "x, lines, options, message",
    [
        ([1], {}, {}, "lines must be a dict"),
        ([1, 2], {"ε": [1, 2, 3]}, {}, "'ε' has shape"),
        ([[1, 2]], {"ε": [[1, 2]]}, {}, "one y for each x"),
        ([0, 1], {"ε": [1, 2]}, {"logx": True}, "set logx=False"),
        ([0, 1], {"ε": [1, 0]}, {"logy": True}, "set logy=False"),
    ],
)
def test_curves_refuse(x, lines, options, message):
    with pytest.raises(ValueError, match=message):
        plotting.curves(x, lines, "x", "y", **options)


def test_points_join_each_group_and_name_each_point():
    groups = {"ours": [(1e5, 0.3, "small"), (1e6, 0.1, "large")], "theirs": [(5e5, 0.2, "U-Net")]}
    (axes,) = plotting.points(groups, "parameters", "KID", logx=True, logy=True, floor=0.01).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    ours, theirs, floor = axes.get_lines()
    assert [*zip(*ours.get_data())] == [(1e5, 0.3), (1e6, 0.1)]
    assert [*zip(*theirs.get_data())] == [(5e5, 0.2)] and set(floor.get_ydata()) == {0.01}
    assert ours.get_marker() != theirs.get_marker()
    assert {(text.get_text(), text.xy) for text in axes.texts} == {
        (label, (x, y)) for group in groups.values() for x, y, label in group
    }


def test_dots_stand_in_their_rows_top_down():
    (axes,) = plotting.dots({"first": [0.2, 0.3], "second": [0.1]}, "KID", floor=0.0, reference=0.2).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["first", "second"]
    first, second, *levels = axes.get_lines()
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([0.2, 0.3], [0, 0])
    assert (list(second.get_xdata()), list(second.get_ydata())) == ([0.1], [1])
    assert [set(line.get_xdata()) for line in levels] == [{0.2}, {0.0}]
    assert axes.yaxis_inverted()


def test_a_heat_map_shows_its_matrix_with_white_for_zero():
    values = torch.tensor([[0.0, 1.0, -3.0], [2.0, 0.5, 0.0]])
    figure = plotting.heat_map(values, "t", "number")
    (image,) = figure.axes[0].images
    assert np.allclose(image.get_array(), values) and image.get_clim() == (-3, 3)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("t", "number")
    with pytest.raises(ValueError, match="must be a matrix, not of shape"):
        plotting.heat_map(values[0], "t", "number")


@pytest.mark.parametrize("draw", [lambda: plotting.points({}, "x", "y"), lambda: plotting.dots({}, "x")])
def test_empty_charts_are_refused(draw):
    with pytest.raises(ValueError, match="at least one entry"):
        draw()


@pytest.mark.parametrize(
    "options, skips",
    [
        ({"name": "resnet", "channels": (8, 16, 16), "stem": 2}, 0),
        ({"name": "resnet", "channels": (8, 16, 16), "stem": 2, "skip": "add"}, 2),
        ({"name": "resnet", "channels": (8, 16, 16), "stem": 2, "skip": "indices", "decoder_depth": 1}, 2),
        ({"name": "segnet", "channels": (8, 16, 16)}, 3),
        ({"name": "unet", "channels": (8, 16), "depth": 1, "attention": (2,)}, 4),
    ],
)
def test_a_network_is_drawn_with_what_goes_past_its_bottleneck(options, skips):
    found = networks.stages(networks.build(**options))
    (axes,) = plotting.network_drawing(found).axes
    assert len(axes.patches) == 1 + sum(len(stage.shape) == 3 for stage in found)  # and the input
    arrows = [text for text in axes.texts if getattr(text, "arrow_patch", None)]
    (bottleneck,) = [arrow for arrow in arrows if arrow.get_text()]
    fewest = min((math.prod(stage.shape), stage.shape) for stage in found if len(stage.shape) == 3)
    assert bottleneck.get_text() == f"bottleneck: {' × '.join(map(str, fewest[1]))} = {fewest[0]:,}"
    (marked,) = [box for box in axes.patches if box.get_linewidth() > 2]
    assert marked.get_x() < bottleneck.xy[0] < marked.get_x() + marked.get_width()
    arrows.remove(bottleneck)
    assert len(arrows) == skips
    for arrow in arrows:  # to the right, from a feature map to one of the same height
        assert arrow.xyann[0] < arrow.xy[0] and arrow.xyann[1] == arrow.xy[1]


def test_the_readers_own_style_neither_shows_nor_changes():
    with plt.style.context(["dark_background", {"axes.grid": False, "font.size": 30}]):
        dark = plotting.curves([1, 2], {"y": [1, 2]}, "x", "y")
        assert matplotlib.rcParams["font.size"] == 30
    assert (pixels(dark) == pixels(plotting.curves([1, 2], {"y": [1, 2]}, "x", "y"))).all()


def test_the_command_line_need_not_wait_for_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it now fails
    for name in [name for name in sys.modules if name.startswith("diffusion_utils.plotting")]:
        monkeypatch.delitem(sys.modules, name)
    fresh = importlib.import_module("diffusion_utils.plotting")
    monkeypatch.setattr("diffusion_utils.plotting", plotting)
    assert fresh.picture_grid(plain(RED)).shape == (16, 21, 3)


def test_every_figure_says_what_it_shows_and_jupyter_stores_that_beside_the_picture():
    from IPython.core.interactiveshell import InteractiveShell
    from matplotlib_inline.backend_inline import configure_inline_support

    shell = InteractiveShell.instance()
    configure_inline_support(shell, "module://matplotlib_inline.backend_inline")
    pictures = torch.zeros(4, 3, 8, 8)
    figures = {
        "4 pictures, 2 in a row: a, b, c and d": plotting.show_grid(pictures, 2, titles=list("abcd")),
        "4 pictures, 4 in a row, cars": plotting.show_grid(pictures, title="cars"),
        "2 rows of pictures: x_t and x̂₀; from left to right t = 0 and t = 1": plotting.strip(
            [pictures[:2], pictures[2:]], ["t = 0", "t = 1"], ["x_t", "x̂₀"]
        ),
        "Pictures in 1 row; from left to right 0, 1, 2, … and 9": plotting.strip([torch.zeros(10, 3, 8, 8)], range(10)),
        "Chart of loss against step, a title: ours": plotting.curves(
            [1, 2], {"ours": [1, 2]}, "step", "loss", title="a title"
        ),
        "KID of 2 rows, as dots: a and b": plotting.dots({"a": [1], "b": [2]}, "KID"),
    }
    for text, figure in figures.items():
        data, metadata = shell.display_formatter.format(figure)
        assert figure.alt == text and metadata["image/png"]["alt"] == text
        assert data["image/png"]


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), 3],
    ids=["floats", "grey", "channels first", "empty", "number"],
)
def test_only_pictures_are_saved(tmp_path, picture):
    with pytest.raises(ValueError, match="expected a uint8 array"):
        plotting.save_picture(picture, tmp_path / "a.png")
    assert not any(tmp_path.iterdir())
