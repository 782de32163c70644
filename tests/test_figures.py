"""The figures made from measurements show what was measured, and say what is missing."""

import importlib
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_utils import pipeline
from diffusion_utils.commands import main
from diffusion_utils.data import to_uint8
from diffusion_utils.plotting import save_grid

figures = importlib.import_module("diffusion_utils.commands.figures")  # the command of this name is its function


def row(images_seen, kid, **how):
    asked = {"sampler": "dpm_solver_pp", "steps": 20, "guidance_scale": 1.0, "time_shift": 0}
    asked |= {"guide": None, "skip_layers": None, "interval": None, "condition": None, "seed": 0, "count": 748, **how}
    return {"images_seen": images_seen, **asked, "generated": {"kid": kid}}


def test_the_learning_curve_has_a_line_per_way_of_drawing(tmp_path, monkeypatch):
    first = [row(250_000, 0.4), row(250_000, 0.3, time_shift=30), row(250_000, 0.1, time_shift=60)]
    second = [row(2_000_000, 0.2, time_shift=30), row(1_000_000, 0.3), row(1_000_000, 0.1, guidance_scale=2.0)]
    second += [row(3_000_000, 0.1, condition="pickup"), row(3_000_000, 0.1, count=256)]
    skipping = {"time_shift": 30, "guidance_scale": 3.0, "skip_layers": ["encoder.7"]}
    second += [row(1_000_000, 0.1, **skipping), row(2_000_000, 0.05, **skipping), row(2_000_000, 0.1, guide="a")]
    (tmp_path / "curve-a.json").write_text(json.dumps(first))
    (tmp_path / "curve-b.json").write_text(json.dumps(second))
    ends = [row(n, kid, part="test") for n, kid in ((4_000_000, 0.1), (2_000_000, 0.2))]
    ends += [row(3_000_000, 0.1, part="validation"), row(3_000_000, 0.1, part="test", guidance_rescale=0.7)]
    (tmp_path / "guidance-stanford-cars-1m.json").write_text(json.dumps(ends))
    drawn = []
    points = figures.points
    monkeypatch.setattr(figures, "points", lambda *given: drawn.append(given[0]) or points(*given))
    assert figures.learning_curve(tmp_path, tmp_path) == tmp_path / "learning_curve.svg"
    assert "</svg>" in (tmp_path / "learning_curve.svg").read_text()
    assert drawn == [
        {  # a shift with one point only is no curve; other ways of drawing are another matter
            "no time shift": [(0.25, 400, ""), (1, 300, "")],
            "time shift 30": [(0.25, 300, ""), (2, 200, "")],
            "time shift 30, skip-layer guidance, w = 3": [(1, 100, ""), (2, 50, "")],
            "ends of stages: no time shift": [(2, 200, ""), (4, 100, "")],
        }
    ]


def test_the_peers_pictures_are_cut_out_of_their_grids(tmp_path, monkeypatch):
    pictures = torch.arange(16).reshape(16, 1, 1, 1) * torch.full((1, 3, 32, 32), 15)
    save_grid(pictures.to(torch.uint8), tmp_path / "peers-32-cpu-a-net.png", 8)
    rows = [
        {"peer": "a net", "parameters": 2_000_000, "size": 32},
        {"peer": "of the package", "parameters": 1, "size": 32},
    ]
    (tmp_path / "peers-32-cpu.json").write_text(json.dumps(rows))
    given = []
    strip = figures.strip
    monkeypatch.setattr(figures, "strip", lambda *args, **more: given.append(args) or strip(*args, **more))
    assert figures.peers(tmp_path, tmp_path).read_bytes().startswith(b"\x89PNG")
    ((drawn, _, labels),) = given
    assert labels == ["a net, 2 M"] and len(drawn) == 1 and drawn[0].shape == (8, 3, 64, 85)
    assert [cell.unique().tolist() for cell in drawn[0]] == [[15 * i] for i in range(8)]  # nothing of the white between


def test_without_measurements_there_is_no_learning_curve(tmp_path):
    with pytest.raises(FileNotFoundError, match="run benchmarks/ways.py curve"):
        figures.learning_curve(tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_rulers_are_drawn_against_each_other_on_validation(tmp_path, monkeypatch):
    scores = {"kid": 0.1, "kid_early": 0.3}
    rows = [{"way": "old", "generated": scores}]
    (tmp_path / "guidance-stanford-cars-1m.json").write_text(json.dumps(rows))
    with pytest.raises(FileNotFoundError, match="ways.py guidance --part validation"):
        figures.rulers(tmp_path, tmp_path)
    measured = {"part": "validation", "generated": scores, "floor": {"kid": 0, "kid_early": -0.01}}
    rows += [{"way": way, "images_seen": seen, **measured} for way, seen in (("a", 9), ("before", 8))]
    (tmp_path / "guidance-stanford-cars-1m.json").write_text(json.dumps(rows))
    given, points = [], figures.points
    monkeypatch.setattr(figures, "points", lambda *args: given.append(args) or points(*args))
    assert "</svg>" in figures.rulers(tmp_path, tmp_path).read_text()
    assert given[0][0] == {"a": [(100, 300, "")], "photographs": [(0, -10, "")]}


def test_drawings_are_vectors_on_white_and_the_same_every_time(tmp_path):
    for draw in (figures.encoder_decoder, figures.segnet, figures.u_net):
        first, again = (draw(tmp_path / name) for name in ("a", "b"))
        assert first.suffix == ".svg" and first.read_bytes() == again.read_bytes()
        root = ElementTree.parse(first).getroot()
        assert root.tag.endswith("svg") and "<image" not in first.read_text() and "fill: #ffffff" in first.read_text()


def test_a_car_comes_out_of_noise(tmp_path, monkeypatch):
    given, strip = [], figures.strip
    monkeypatch.setattr(figures, "strip", lambda *args, **more: given.append(args) or strip(*args, **more))
    figures.reverse_process(tmp_path)
    ((rows, times, labels),) = given
    assert len(rows) == len(labels) == 4 and times[-1] == "finished" and times[0] == "t = 999"
    assert rows[0][0].std() > 0.9 and torch.equal(rows[0][-1], rows[1][-1])  # from noise; the end is the last guess
    finished = pipeline.load(figures.HEADLINE)(range(2))
    assert torch.equal(to_uint8(torch.stack([rows[0][-1], rows[2][-1]])), finished)


def test_the_walk_of_dots_is_the_one_that_the_notebook_stores(tmp_path):
    folder = Path(__file__).parents[1]
    made = figures.an_hour(tmp_path, folder / "notebooks/00_diffusion_in_an_hour.ipynb")
    shipped = folder / "images/diffusion_in_an_hour.png"
    assert np.array_equal(np.asarray(Image.open(made)), np.asarray(Image.open(shipped)))


def test_the_command_makes_the_named_figures_and_refuses_others(tmp_path, monkeypatch, capsys):
    made = []
    for name in ("segnet", "u_net"):
        monkeypatch.setitem(figures.FIGURES, name, lambda out, name=name: made.append((name, out)) or out / name)
    assert main(["figures", "u_net", "segnet", "--out", str(tmp_path)]) == 0
    assert made == [("u_net", tmp_path), ("segnet", tmp_path)]
    assert capsys.readouterr().out.split() == [str(tmp_path / "u_net"), str(tmp_path / "segnet")]
    assert main(["figures", "segnet", "cars", "--out", str(tmp_path)]) == 1
    assert len(made) == 2 and "error: no figure named 'cars': choose one of crops, " in capsys.readouterr().err


def test_every_figure_of_images_is_made_by_a_command_and_small():
    root = Path(figures.__file__).parents[2]
    sources = [Path(figures.__file__), *(root / "benchmarks").glob("*.py")]
    named = "\n".join(path.read_text() for path in sources)
    files = list((root / "images").iterdir())
    assert len(files) > 12
    for path in files:
        assert path.name in named and path.stat().st_size <= 500_000, path
