"""What is checked before the work begins."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from diffusion_utils import pipeline, pretrained
from diffusion_utils.checks import check_device, check_file, check_folder, check_kind, fits, suggestions

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "value, hint, expected",
    [
        (3, int, True),
        (True, int, False),
        (3.0, int, False),
        ("3", int, False),
        (3, float, True),
        (float("nan"), float, False),
        (float("inf"), float, False),
        (None, int | None, True),
        ([1, 2], tuple[int, ...], True),
        ([1, "2"], tuple[int, ...], False),
        (8, int | tuple[int, ...], True),
        ([1, 2], tuple[int, int], True),
        ([1, 2, 3], tuple[int, int], False),
        (["a"], Sequence[str], True),
        ("a", Sequence[str], False),
        ("b", Literal["a", "b"], True),
        ({}, dict, True),
        ([], dict, False),
        (1, bool, False),
    ],
)
def test_a_value_fits_its_kind_or_not(value, hint, expected):
    assert fits(value, hint) == expected


def test_an_error_names_the_option_and_the_kind():
    with pytest.raises(ValueError, match="^channels must be a list, each a whole number, not '16'$"):
        check_kind("channels", "16", tuple[int, ...])


def test_suggestions_are_five_at_most_nearest_first():
    names = pretrained.names()
    assert suggestions("stanford-cars-1", names).startswith("stanford-cars-1m, stanford-cars-")
    assert suggestions("STANFORD-CARS-RESNET", names).startswith("stanford-cars-resnet, ")
    assert suggestions("x", names).count(",") == 4 and suggestions("x", names).endswith(f" … ({len(names)} in all)")
    assert suggestions("gree", ["red", "green", "SUV"]) == "green, red, SUV" and suggestions("x", []) == "(none)"


@pytest.mark.parametrize("device", ["gpu", "", "cuda:77", "meta", "cpu:x", "xla"])
def test_a_device_that_is_not_there_is_refused_in_one_sentence(device):
    for use in (check_device, partial(pretrained.load, "toy-cars-resnet"), partial(pipeline.load, "toy-cars-resnet")):
        with pytest.raises(ValueError, match=f"^there is no device '{device}' here: choose one of cpu") as error:
            use(device)
        assert "\n" not in str(error.value)
    check_device("cpu")


def test_where_nothing_can_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "v1.png").mkdir()
    for path in ("a.png", "new/folders/a.png", "file"):
        check_file(tmp_path / path)
    check_folder(tmp_path / "v1.png", endings=[".png"])
    check_folder(tmp_path / "new" / "v1.2", endings=[".png"])
    for path, text in (
        (tmp_path, "is a folder: give the name of a file"),
        (Path(""), "is a folder"),
        (Path("/dev/null"), "is no ordinary file"),
        (Path("/proc/nobody/a.png"), "nothing can be written in /proc"),
        (tmp_path / "file" / "a.png", "file is a file and not a folder: choose another place"),
        (tmp_path / "file" / "below" / "a.png", "file is a file and not a folder"),
    ):
        with pytest.raises(OSError, match=f"^--out.*{text}"):
            check_file(path)
    for path, text in ((tmp_path / "file", "is a file and not a folder"), (tmp_path / "a.PNG", "looks like a file")):
        with pytest.raises(OSError, match=f"^--out.*{text}"):
            check_folder(path, endings=[".png"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "v1.png"]


AS_NOBODY = """
import os, pathlib, sys
from diffusion_utils.checks import check_file
if not os.getuid():
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
check_file(pathlib.Path(sys.argv[1]))
"""


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such users")
def test_a_folder_in_which_one_may_not_write_is_refused_before_the_work():
    """As an ordinary user, also where tests run as root."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "open").mkdir()
        os.chmod(Path(folder) / "open", 0o777)
        os.chmod(folder, 0o555)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        for path, refused in (("new/a.png", True), ("a.png", True), ("open/new/a.png", False)):
            command = [sys.executable, "-c", AS_NOBODY, f"{folder}/{path}"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
            said = f"OSError: --out: nothing can be written in {folder} (Permission denied): choose another place"
            assert (done.returncode, said in done.stderr) == (refused, refused), done.stderr
        os.chmod(folder, 0o755)
