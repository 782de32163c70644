"""Points of the plane, and the figures in which they walk."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_utils.data import plane
from diffusion_utils.plotting.plane import Plane, mesh, planes, png


@pytest.mark.parametrize("name", plane.PLANES)
@pytest.mark.parametrize("count", [2, 7, 600])
def test_points_are_centred_and_as_strong_as_the_noise(name, count):
    points = plane.points(name, count)
    assert points.shape == (count, 2) and points.dtype == torch.float32
    torch.testing.assert_close(points.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    assert points.square().mean().item() == pytest.approx(1, rel=1e-5)
    assert torch.equal(points, plane.points(name, count))  # nothing is random


@pytest.mark.parametrize("name", plane.PLANES)
def test_points_lie_evenly_along_their_lines(name):
    points = plane.points(name, 600)
    gaps = torch.cdist(points, points).fill_diagonal_(9).amin(1)
    assert gaps.median() > 0.005 and gaps.max() < 1.5 * gaps.median()


def test_a_ring_is_a_circle_and_moons_are_two_halves():
    assert plane.points("ring").norm(dim=1).std() < 1e-3
    upper, lower = plane.points("moons").chunk(2)
    torch.testing.assert_close(upper, -lower, rtol=0, atol=0.01)  # turned by half a turn


def test_what_is_no_data_set_is_refused():
    with pytest.raises(ValueError, match="unknown data set 'star': choose one of car, ring, moons"):
        plane.points("star")
    for count in (1, 10.6):
        with pytest.raises(ValueError, match=f"count must be a whole number of at least 2, not {count}"):
            plane.points("ring", count)


def test_a_mesh_runs_row_by_row():
    grid = mesh(3, 1.0)
    assert grid[:4].tolist() == [[-1, -1], [0, -1], [1, -1], [-1, 0]]


def picture(figure):
    with Image.open(io.BytesIO(png(figure))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_panel_shows_dots_where_they_are():
    left, right = (picture(planes({"": Plane(dots=torch.tensor([[x, 0.0]]))}, width=3)) for x in (-2.0, 2.0))
    dark = [(255 * 3 - each.sum(2)) * (each[:, :, 2] > each[:, :, 0] + 30) for each in (left, right)]
    columns = [(each.sum(0) * np.arange(each.shape[1])).sum() / each.sum() / each.shape[1] for each in dark]
    assert columns[0] < 0.25 and columns[1] > 0.75


def test_a_figure_has_all_panels_in_rows_and_says_so():
    grid = mesh(5)
    panels = {
        "field": Plane(arrows=(grid, grid)),
        "two": Plane(arrows=[(grid, grid), (grid, -grid)]),
        "walk": Plane(paths=torch.randn(4, 3, 2), ghosts=grid),
        "density": Plane(shade=(grid, grid[:, 0].exp())),
    }
    figure = planes(panels, columns=2)
    assert [axes.get_title() for axes in figure.axes] == list(panels)
    assert figure.alt == "Panels of the plane: field, two, walk and density"
    assert picture(figure).std() > 5


def test_dots_have_colours_and_arrows_to_their_ends_and_columns_have_rows():
    here, there = torch.rand(2, 5, 2)
    column = [Plane(dots=here, ends=there), Plane(dots=here, hues=torch.linspace(0, 1, 5))]
    figure = planes({"a": column, "b": column[::-1]}, row_labels=["up", "down"])
    assert [panel.get_title() for panel in figure.axes] == ["a", "b", "", ""]
    assert [panel.get_ylabel() for panel in figure.axes] == ["up", "", "down", ""]
    dots, arrows = figure.axes[0].collections
    assert np.allclose(dots.get_offsets(), here)
    assert np.allclose(arrows.get_offsets() + np.stack([arrows.U, arrows.V], 1), there)
    picture(figure)  # colours are worked out when it is drawn
    for coloured in (figure.axes[1], figure.axes[2]):
        assert len({*map(tuple, coloured.collections[0].get_facecolors())}) == 5
    assert figure.alt == "Panels of the plane: a and b, in 2 rows: up and down"


def test_rows_need_a_panel_each():
    with pytest.raises(ValueError, match="give each title 2 panels, as many as there are row labels"):
        planes({"a": [Plane()]}, row_labels=["up", "down"])
