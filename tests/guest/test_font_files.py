"""Fonts of matplotlib in memory: what a person can see of matplotlib is as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from gvisor_kernel.guest import font_files

from ..foreign import make_environment
from ..sweeps import needs_all
from ..world import PROJECT

LOOK = """
import functools, gc, hashlib, io, json, os, pickle, sys, traceback, warnings
sys.path.insert(0, sys.argv[1])
from gvisor_kernel.guest import font_files
font_files.prepare()
del sys.path[0]
import matplotlib
matplotlib.use("agg")
from matplotlib import font_manager, ft2font
from matplotlib.figure import Figure

folder = sys.argv[2]
shown = font_manager.findfont("DejaVu Sans")
DRAWN = [("png", 3, {}), ("svg", 3, {"Date": None}), ("ps", 3, {})]
DRAWN += [("pdf", kind, {"CreationDate": None}) for kind in (3, 42)]


def digest(form, kind, metadata):
    matplotlib.rcParams["pdf.fonttype"] = matplotlib.rcParams["ps.fonttype"] = kind
    figure = Figure(figsize=(2, 1))
    figure.suptitle("Tea \\u2615 $\\\\sum \\\\alpha_i$ \\u015d \\u4e2d")
    out = io.BytesIO()
    figure.savefig(out, format=form, metadata=metadata)
    return hashlib.sha256(out.getvalue()).hexdigest()


def fail(path, **more):
    try:
        ft2font.FT2Font(path, **more)
    except Exception as error:
        return repr(error)


def forget():
    # Let go of what matplotlib keeps of fonts.
    for each in gc.get_objects():
        if isinstance(each, functools._lru_cache_wrapper):
            each.cache_clear()
    gc.collect()


def look():
    forget()
    matplotlib.rcParams["svg.hashsalt"] = "same"
    found = {"drawn": [digest(*each) for each in DRAWN]}
    paths = ("none", "folder", "empty", "garbage", "nul\\0")
    found["errors"] = [fail(os.path.join(folder, name)) for name in paths]
    found["wrong"] = [fail(5), fail(shown, nothing=1), fail(shown, hinting_factor=-1)]
    font = ft2font.FT2Font(shown)
    found["names"] = [font.fname, repr(ft2font.FT2Font(os.fsencode(shown)).fname)]
    found["type"] = type(font.fname).__name__, ft2font.FT2Font.__init__.__doc__
    with open(shown, "rb") as file:
        given = ft2font.FT2Font(file)
        found["given"] = str(given.fname)
    if hasattr(font, "_layout"):
        found["item"] = str(font._layout("a", ft2font.LoadFlags.DEFAULT)[0])
    try:
        pickle.dumps(font)
    except Exception as error:
        found["pickle"] = str(error)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ft2font.FT2Font(shown, hinting_factor=8)
        ft2font.FT2Font(shown, _kerning_factor=1)
    found["warnings"] = [(str(each.message), each.filename) for each in told]
    return found, len(font_files._contents)


os.environ["GVISOR_KERNEL_PLAIN"] = "heap fonts"
plain = look()
del os.environ["GVISOR_KERNEL_PLAIN"]
quick = look()

changed = os.path.join(folder, "font.ttf")


def count():
    return [path for path, *_ in font_files._contents].count(changed)


for name in ("DejaVu Serif", "STIXGeneral"):
    with open(font_manager.findfont(name), "rb") as file, open(changed, "wb") as copy:
        copy.write(file.read())
    if name == "DejaVu Serif":
        older = ft2font.FT2Font(changed)
newer = ft2font.FT2Font(changed)
older.set_text("abc")
families = older.family_name, newer.family_name
again = ft2font.FT2Font(changed)
files = count()
child = os.fork()
if child == 0:
    again.set_text("xyz")
    os._exit(digest(*DRAWN[0]) != quick[0]["drawn"][0])
forked = os.waitpid(child, 0)[1]
del older, newer, again
forget()
left = count()
print(json.dumps([matplotlib.__version__, plain, quick, families, files, forked, left]))
"""


def check(python: str, folder: Path) -> str:
    """Check matplotlib of the interpreter ``python``; return its version."""
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "garbage").write_bytes(b"no font" * 100)
    variables = {**os.environ, "SOURCE_DATE_EPOCH": "0", "MPLCONFIGDIR": str(folder / "lists")}
    command = [python, "-I", "-W", "ignore", "-c", LOOK, str(PROJECT), str(folder)]
    answer = subprocess.check_output(command, text=True, env=variables, timeout=300)
    version, (plain, none), (quick, some), families, files, forked, left = json.loads(answer)
    assert plain == quick
    assert none == 0
    assert some > 1
    assert families == ["DejaVu Serif", "STIXGeneral"]
    assert files == 2  # of the font that was replaced; two FT2Font share the newer one's
    assert forked == 0
    assert left == 0
    return str(version)


def test_figures_errors_and_names_are_matplotlibs_own(tmp_path: Path) -> None:
    check(sys.executable, tmp_path)


@needs_all
@pytest.mark.parametrize("release", ["3.10.*", "3.11.*"])
def test_the_releases_that_were_read_are_changed(tmp_path: Path, release: str) -> None:
    python = make_environment(tmp_path / "venv", f"matplotlib=={release}", ours=False)
    assert check(str(python), tmp_path).startswith(release.removesuffix("*"))


def test_another_version_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    version, module = types.ModuleType("version"), types.ModuleType("matplotlib.ft2font")
    monkeypatch.setitem(sys.modules, font_files.VERSION_MODULE, version)
    module.FT2Font = type("FT2Font", (), {"fname": property(id)})  # type: ignore[attr-defined]
    for name in ("", "3.9.4", "3.11.2", "4.0"):
        version.version = name  # type: ignore[attr-defined]
        assert not font_files.change(module)
        assert not font_files.change(types.ModuleType("empty"))


def test_fonts_have_a_limit_together_and_are_regular_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1" * 6)
    two.write_bytes(b"2" * 6)
    monkeypatch.setattr(font_files, "MAX_BYTES", 10)
    held = font_files.read(str(one))
    assert held is not None
    assert held.read() == b"1" * 6
    assert font_files.read(str(two)) is None
    assert font_files.read(str(one)) is not None  # it is the same memory
    del held
    assert font_files.read(str(two)) is not None
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "", "none"):
        assert font_files.read(str(tmp_path / name)) is None
