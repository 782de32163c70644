"""Files: they hold their old contents or the whole new ones, never a mixture; and the cache folder."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_utils import files
from diffusion_utils.files import read_cached, write_atomically, write_cached, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_appears_with_its_parent_folders(tmp_path):
    path = tmp_path / "a" / "b" / "note.txt"
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert names(path.parent) == ["note.txt"]


def test_path_may_be_a_string_and_is_replaced(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old and longer")
    write_atomically(str(path), lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"


def test_the_result_is_readable_by_others(tmp_path):
    path = tmp_path / "note.txt"
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("no"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_file_and_no_leftovers(tmp_path, error):
    path = tmp_path / "note.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half of the n")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


def test_a_failing_first_write_leaves_nothing(tmp_path):
    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(tmp_path / "note.txt", fail)
    assert names(tmp_path) == []


@pytest.mark.parametrize("moment", ["fsync", "chmod", "replace"])
def test_a_failure_before_the_rename_changes_nothing(tmp_path, monkeypatch, moment):
    path = tmp_path / "note.txt"
    path.write_text("old")

    def fail(*args, **kwargs):
        raise OSError("simulated")

    monkeypatch.setattr(os, moment, fail)
    with pytest.raises(OSError, match="simulated"):
        write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


def test_the_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """A rename that reaches the disk before the bytes do would leave an empty file."""
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    write_atomically(tmp_path / "note.txt", lambda temporary: temporary.write_text("new"))
    assert done[:2] == ["fsync", "replace"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("moment", ["fsync", "chmod", "replace"])
def test_a_process_that_dies_on_the_way_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "note.txt"
    path.write_text("old")
    child = os.fork()
    if child == 0:  # dies as by SIGKILL: no `finally` runs
        monkeypatch.setattr(os, moment, lambda *args: os._exit(7))
        write_atomically(path, lambda temporary: temporary.write_text("new"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2  # and a leftover, which the next write removes
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new" and names(tmp_path) == ["note.txt"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs locks that die with their process")
def test_only_what_killed_writers_of_the_same_file_left_is_removed(tmp_path):
    others = [".notes.txt.abcdefgh.part", ".note.txt.part", "note.txt.abcdefgh.part", ".note.txt.abcdefgh.part.txt"]
    for name in (*others, ".note.txt.abcdefgh.part"):
        (tmp_path / name).write_text("half")

    def write(temporary):  # meanwhile another one writes the same file
        assert names(tmp_path) == sorted([*others, temporary.name])
        temporary.write_text("mine")
        write_atomically(tmp_path / "note.txt", lambda other: other.write_text("theirs"))
        assert temporary.read_text() == "mine"

    write_atomically(tmp_path / "note.txt", write)
    assert names(tmp_path) == sorted([*others, "note.txt"]) and (tmp_path / "note.txt").read_text() == "mine"


def test_text_and_json_are_utf_8_whatever_the_system_prefers(tmp_path):
    write_text(tmp_path / "a" / "note.txt", "ᾱ → x̂₀")
    assert (tmp_path / "a" / "note.txt").read_bytes() == "ᾱ → x̂₀".encode()
    value = {"share": [0.5, None], "loss of x̂₀": True}
    write_json(tmp_path / "card.json", value)
    text = (tmp_path / "card.json").read_bytes().decode()
    assert json.loads(text) == value and "x̂₀" in text and text.endswith("}\n") and "\n  " in text
    write_json(tmp_path / "run.json", {"data": "caf\udce9"})  # a folder whose name is no UTF-8
    assert json.loads((tmp_path / "run.json").read_bytes()) == {"data": "caf\udce9"}
    write_json(tmp_path / "card.json", value, indent=None)
    assert (tmp_path / "card.json").read_bytes().count(b"\n") == 1


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "card.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "card.json", [1, object()])
    assert json.loads((tmp_path / "card.json").read_text()) == [1] and names(tmp_path) == ["card.json"]


# ---------------------------------------------------------------- the cache folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_tensor_is_kept_and_read_again(cache):
    tensor = torch.arange(6, dtype=torch.uint8).view(2, 3)
    assert files.cache_folder() == cache and read_cached("cars") is None
    write_cached("cars", tensor)
    again = read_cached("cars")
    assert torch.equal(again, tensor) and again.dtype == tensor.dtype and names(cache) == ["cars.safetensors"]
    assert read_cached("other") is None


@pytest.mark.parametrize("damage", [b"", b"half of a file", None])
def test_a_damaged_file_counts_as_none(cache, damage):
    write_cached("cars", torch.zeros(3))
    whole = (cache / "cars.safetensors").read_bytes()
    (cache / "cars.safetensors").write_bytes(whole[:-4] if damage is None else damage)
    assert read_cached("cars") is None
    write_cached("cars", torch.ones(3))
    assert torch.equal(read_cached("cars"), torch.ones(3))


def in_a_process_of_its_own(code, **how):
    how = {"env": {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}} | how
    code = "import os, resource, torch; from diffusion_utils.files import *\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout


FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"  # as on a full disk, every write beyond it fails


@pytest.mark.skipif(os.name != "posix", reason="needs limits of a process")
def test_a_full_cache_is_done_without(cache):
    assert (
        in_a_process_of_its_own(FULL + "write_cached('cars', torch.zeros(999)); print(read_cached('cars'))") == "None\n"
    )
    assert names(cache) == []


@pytest.mark.skipif(os.name != "posix", reason="needs limits of a process")
@pytest.mark.parametrize(
    "write, message",
    [
        (
            "write_atomically('card', lambda path: save_file({'x': torch.zeros(999)}, path))",
            "card could not be written: ",
        ),
        ("write_text('card', 'x' * 999)", "File too large: 'card'"),
    ],
)
def test_where_there_is_no_room_the_file_is_named(tmp_path, write, message):
    code = f"try: {write}\nexcept OSError as error: print(error)"
    said = in_a_process_of_its_own(FULL + code, cwd=tmp_path)
    assert message in said and said.count("\n") == 1 and names(tmp_path) == []


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_home_folder_nothing_is_cached(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(files.CACHE_VARIABLE)
    if value is not None:
        monkeypatch.setenv(files.CACHE_VARIABLE, value)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where HOME is not set and the user has no entry
    write_cached("cars", torch.zeros(3))
    assert read_cached("cars") is None and names(tmp_path) == []


def test_the_cache_can_be_anywhere_without_a_home_folder(cache, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    write_cached("cars", torch.zeros(3))
    assert read_cached("cars") is not None


def test_the_cache_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv(files.CACHE_VARIABLE, "~/kept")
    assert files.cache_folder() == tmp_path / "kept"


def test_a_cache_that_cannot_be_written_is_done_without(cache):
    cache.write_text("a file stands where the folder belongs")
    write_cached("cars", torch.zeros(3))
    assert read_cached("cars") is None


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_a_link_stays_one_and_what_it_points_at_is_written(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "nowhere").symlink_to("new/b")
    write_text(tmp_path / "link", "new")
    write_text(tmp_path / "nowhere", "made")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "nowhere").is_symlink() and (tmp_path / "new" / "b").read_text() == "made"
    monkeypatch.setenv("HOME", str(tmp_path))
    write_text("~/c", "home")
    assert (tmp_path / "c").read_text() == "home"
