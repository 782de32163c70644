"""The figures made from measurements show what was measured, and say what is missing."""

import json

import pytest

from diffusion_utils import figures


def row(images_seen, kid, **how):
    asked = {"sampler": "dpm_solver_pp", "steps": 20, "guidance_scale": 1.0, "time_shift": 0}
    asked |= {"condition": None, "seed": 0, "count": 748, **how}
    return {"images_seen": images_seen, **asked, "generated": {"kid": kid}}


def test_the_learning_curve_has_a_line_per_time_shift(tmp_path, monkeypatch):
    first = [row(250_000, 0.4), row(250_000, 0.3, time_shift=30), row(250_000, 0.1, time_shift=60)]
    second = [row(2_000_000, 0.2, time_shift=30), row(1_000_000, 0.3), row(1_000_000, 0.1, guidance_scale=2.0)]
    second += [row(3_000_000, 0.1, condition="pickup"), row(3_000_000, 0.1, count=256)]
    (tmp_path / "curve-a.json").write_text(json.dumps(first))
    (tmp_path / "curve-b.json").write_text(json.dumps(second))
    drawn = []
    points = figures.points
    monkeypatch.setattr(figures, "points", lambda *given: drawn.append(given[0]) or points(*given))
    assert figures.learning_curve(tmp_path, tmp_path) == tmp_path / "learning_curve.png"
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert drawn == [{  # a shift with one point only is no curve; other ways of drawing are another matter
        "no time shift": [(0.25, 400, ""), (1, 300, "")],
        "time shift 30": [(0.25, 300, ""), (2, 200, "")],
    }]  # fmt: skip


def test_without_measurements_there_is_no_learning_curve(tmp_path):
    with pytest.raises(FileNotFoundError, match="run benchmarks/curve.py"):
        figures.learning_curve(tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())
