"""``runsc``: releases are installed from a bucket, tried, chosen, listed and removed.

As root the store of releases is that of the machine, so the tests run in a mount namespace of their
own; an ordinary user has a store in the folder of the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gvisor_kernel.cli import runsc
from gvisor_kernel.cli.checks import trial
from gvisor_kernel.cli.checks.updates import check_updates
from gvisor_kernel.cli.main import main
from gvisor_kernel.cli.runsc import make_row
from gvisor_kernel.errors import ReleaseError
from gvisor_kernel.releases import BASE, LATEST, TRIED
from gvisor_kernel.releases import bucket as fetching
from gvisor_kernel.releases.contents import find_machine, unpack
from gvisor_kernel.releases.release_store import (
    SHARED,
    choose,
    find_chosen,
    find_releases,
    own_store,
    publish,
    release_order,
    write,
)
from gvisor_kernel.runtimes.runsc import command_line
from gvisor_kernel.runtimes.state.listed import find_all
from gvisor_kernel.shown_text import describe_size

from ..jupyter.helpers import running_kernel, sandbox_of
from ..patience import scale_seconds
from ..releases.bucket import (
    NEW,
    OLD,
    Bucket,
    fill,
    make_archive,
    newer_archive,
    newer_program,
    send_halves,
    serving,
    system_program,
    wait,
)
from ..sweeps import needs_all
from ..without_runsc import COVER
from ..world import PROJECT

IN_NAMESPACE = "GK_TEST_OWN_STORE"
"""Set in the process whose store of releases is its own although it is root's."""
IS_ROOT = os.geteuid() == 0
Captured = pytest.CaptureFixture[str]

if IS_ROOT and IN_NAMESPACE not in os.environ:

    @pytest.mark.timeout(900)
    def test_in_a_namespace() -> None:
        """The others, with an empty store of root."""
        script = f"""
            {COVER}
            exec "$0" -m pytest -p no:cacheprovider -q -rs --timeout=300 "$1"
        """
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", script, sys.executable, __file__],
            env={**os.environ, IN_NAMESPACE: "1"},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=scale_seconds(800),
            check=False,
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]


inside = pytest.mark.skipif(
    IS_ROOT and IN_NAMESPACE not in os.environ,
    reason="root's store is that of the machine: see test_in_a_namespace",
)
mounts = pytest.mark.skipif(IN_NAMESPACE not in os.environ, reason="only root can mount")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with serving(tmp_path_factory.mktemp("bucket")) as found:
        yield found


@pytest.fixture
def bucket(shared: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    """Both releases in a bucket, an empty store, and kernels without snapshots."""
    for name, value in shared.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "jupyter_config.json").write_text('{"GVisorProvisioner": {"snapshot": "off"}}')
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    for kept in (shared.files, shared.seen, shared.connects):
        kept.clear()
    for event in (shared.go, shared.reached):
        event.clear()
    fill(shared)
    yield shared
    shared.go.set()
    shutil.rmtree(own_store(), ignore_errors=True)


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases are published without their trial, which takes some seconds; others show it."""
    monkeypatch.setattr(trial, "try_release", lambda program, tell: [])


def names() -> list[str]:
    return [release.name for release in find_releases()]


def kept() -> list[str]:
    """Return what is in the store, but locks."""
    found = own_store().iterdir() if own_store().exists() else []
    return sorted(path.name for path in found if path.name not in ("lock", "installing"))


def parts() -> list[str]:
    return sorted(path.name for path in (own_store() / "partial").iterdir())


def fail(capsys: Captured, *words: str) -> str:
    """Run a command that fails, and return its error. Nothing is installed or chosen by it."""
    before = names(), find_chosen()
    assert main(["runsc", *words]) == 1
    assert (names(), find_chosen()) == before
    assert not [name for name in kept() if name.startswith(("new-", "gone-"))]
    return capsys.readouterr().err


@inside
def test_a_release_is_installed_tried_chosen_and_removed(
    bucket: Bucket, capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "none"))
    umask = os.umask(0o077)  # runsc starts itself as nobody
    try:
        assert main(["runsc", "install", NEW]) == 0
    finally:
        os.umask(umask)
    out = capsys.readouterr().out
    size = describe_size(len(newer_archive()))
    assert out.startswith(f"Fetching gvisor.tar.bz2, {size}\nUnpacking\nTrying {NEW}.0: ")
    assert f"Installed the release {NEW}.0 of runsc.\n" in out
    assert "Kernels start from the snapshot" in out
    assert out.endswith(f"New kernels start with the release {NEW}.0 of runsc.\n")
    assert parts() == []
    chosen = find_chosen()
    assert chosen is not None
    assert chosen.program.read_bytes() == newer_program()
    assert chosen.source.startswith(BASE)
    assert chosen.sha512 == hashlib.sha512(newer_program()).hexdigest()
    with running_kernel() as (manager, _):
        assert main(["runsc", "list", "--json"]) == 0
        listed = json.loads(capsys.readouterr().out)
        assert [(one["name"], one["chosen"]) for one in listed] == [
            (f"{NEW}.0", True),
            ("system", False),
        ]
        directory = sandbox_of(manager).directory
        ours = [it.id for it in find_all() if it.directory == directory]
        assert listed[0]["sandboxes"] == ours
        assert listed[0]["snapshots"]
        assert listed[1]["installed"] is None
        assert main(["runsc", "use", "system"]) == 0
        assert "New kernels start with the system's runsc." in capsys.readouterr().out
        said = fail(capsys, "remove", NEW)
        assert "Sandboxes run with" in said
        assert f"{ours[0]} belongs to process {os.getpid()}" in said
    assert main(["runsc", "list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:2] == ["RELEASE", "CHOSEN"]
    assert rows[1][0] == f"{NEW}.0"
    assert rows[2][:3] == ["system", f"({OLD}.0)", "yes"]
    assert main(["runsc", "use", NEW]) == 0
    capsys.readouterr()
    assert "New kernels start with the release" in fail(capsys, "remove", NEW)
    choose("system")
    assert main(["runsc", "remove", f"{NEW}.0"]) == 0
    assert kept() == ["chosen", "partial"]


@inside
def test_what_is_installed_is_not_fetched_again(bucket: Bucket, capsys: Captured) -> None:
    with write() as draft:
        (draft / "runsc").write_bytes(system_program())
        publish(draft, f"{OLD}.0", f"{OLD}.0", "ab", "a test")
    assert main(["runsc", "install", OLD]) == 0
    assert "is already installed." in capsys.readouterr().out
    assert bucket.seen == []
    chosen = find_chosen()
    assert chosen is not None
    assert chosen.name == f"{OLD}.0"


@inside
def test_what_is_gone_is_told_below_the_list(bucket: Bucket, capsys: Captured) -> None:
    for name in (OLD, NEW):
        with write() as draft:
            (draft / "runsc").write_bytes(system_program())
            publish(draft, f"{name}.0", f"{name}.0", "ab", "a test")
    choose(NEW)
    shutil.rmtree(own_store() / f"{NEW}.0")
    assert main(["runsc", "list"]) == 0
    said = capsys.readouterr()
    assert f"{OLD}.0" in said.out
    assert f"The release {NEW}.0 of runsc is chosen, but not installed." in said.err
    assert f"gvisor-kernel runsc use {OLD}.0" in said.err


@pytest.mark.parametrize(("store", "said"), [(SHARED, "a mirror (root's)"), ("/x", "a mirror")])
def test_roots_release_is_marked(store: Path | str, said: str) -> None:
    one = {"name": OLD, "version": OLD, "installed": 1.0, "chosen": False, "from": "a mirror"}
    one |= {"path": f"{store}/{OLD}/runsc", "sandboxes": [], "snapshots": []}
    assert make_row(one)[-1] == said


@inside
def test_the_systems_runsc_is_no_release(
    bucket: Bucket, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["runsc", "remove", "system"]) == 1
    assert "apt-get remove runsc" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(command_line, "EXTRA_PATH", "/nonexistent")
    assert main(["runsc", "use", "system"]) == 1
    said = capsys.readouterr().err
    assert "is not installed" in said
    assert "gvisor-kernel runsc install" in said
    with write() as draft:
        (draft / "runsc").write_bytes(system_program())
        publish(draft, f"{OLD}.0", f"{OLD}.0", "ab", "a test")
    assert f"run `gvisor-kernel runsc use {OLD}.0`. If the setting" in fail(capsys, "use", "system")
    assert find_chosen() is None


@inside
@pytest.mark.usefixtures("untried")
def test_a_file_is_installed(bucket: Bucket, capsys: Captured, tmp_path: Path) -> None:
    file = tmp_path / "gvisor.tar.bz2"
    file.write_bytes(newer_archive())
    digests = tmp_path / "digests"
    digest = hashlib.sha512(newer_archive()).hexdigest()
    digests.write_text(f"{'0' * 128}  runsc.txt\n{digest}  ./gvisor.tar.bz2\n")
    assert main(["runsc", "install", "--file", str(file), "--sha512", str(digests)]) == 0
    assert names() == [f"{NEW}.0"]
    assert find_releases()[0].source == str(file)
    assert bucket.seen == []
    assert kept() == [f"{NEW}.0", "chosen"]


@inside
def test_a_wrong_file_changes_nothing(bucket: Bucket, capsys: Captured, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"<!DOCTYPE html>")
    install = ("install", "--file", str(file))
    assert f"{file}: runsc is no program: it begins with '<!DOCTYPE" in fail(capsys, *install)
    assert "has not the digest" in fail(capsys, *install, "--sha512", "0" * 128)
    assert "is no digest of SHA-512" in fail(capsys, *install, "--sha512", "0" * 127)
    said = fail(capsys, *install, "--sha512", str(file))
    assert f"The file {file} has no digests of gvisor.tar.bz2 or runsc." in said
    assert "proxy" not in said
    (tmp_path / "true").write_bytes(Path("/bin/true").read_bytes())
    said = fail(capsys, "install", "--file", str(tmp_path / "true"))
    assert f"{tmp_path / 'true'}: runsc does not print its version." in said
    for path in (str(tmp_path / "x"), "/dev/zero", str(tmp_path)):
        assert f"{path} is no file of up to" in fail(capsys, "install", "--file", path)
    assert kept() == []
    assert bucket.seen == []


@inside
def test_a_mirror_without_tls_needs_a_digest(
    bucket: Bucket, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = ("install", OLD, "--from", "http://127.0.0.1:1/gvisor")
    assert "Nothing is fetched from 127.0.0.1:1." in fail(capsys, *mirror)
    assert "cannot be fetched" in fail(capsys, *mirror, "--sha512", "0" * 128)


@inside
def test_another_release_than_the_one_asked_for_is_refused(
    bucket: Bucket, capsys: Captured
) -> None:
    bucket.put("20990101", "runsc", system_program())
    said = fail(capsys, "install", "20990101")
    assert f"{BASE}/release/20990101/" in said
    assert f"The release 20990101 was asked for, and this is {OLD}.0." in said
    assert "'1; rm' is no release" in fail(capsys, "install", "1; rm")


@inside
@pytest.mark.usefixtures("untried")
def test_by_default_it_is_the_one_that_was_tried_or_else_the_latest(
    bucket: Bucket, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runsc, "TRIED", "20250101")
    assert main(["runsc", "install"]) == 0
    assert names() == [f"{NEW}.0"]
    asked = [path.split("/")[4] for path, _ in bucket.seen]
    assert asked == ["20250101", "20250101", LATEST, LATEST]


@inside
@pytest.mark.usefixtures("untried")
def test_a_mirror_hands_out_no_older_release(bucket: Bucket, capsys: Captured) -> None:
    """In the place of another one, as the latest, or where that which was tried is gone."""
    mirror = ("--from", BASE.replace("/gvisor/", "/mirror/"))
    bucket.files.clear()

    def put(release: str, body: bytes) -> None:
        file = bucket.path(release, "runsc")
        bucket.put(release, "runsc", body)
        for name in (file, f"{file}.sha512"):
            bucket.files[name.replace("/gvisor/", "/mirror/", 1)] = bucket.files.pop(name)

    put(TRIED, system_program())
    said = fail(capsys, "install", *mirror)
    assert f"The release {TRIED} was asked for, and this is {OLD}.0." in said
    bucket.files.clear()
    put(LATEST, system_program())
    for words in (mirror, (LATEST, *mirror)):
        said = fail(capsys, "install", *words)
        assert f"The release {TRIED} is known to be there, and this is {OLD}.0." in said
        assert f"gvisor-kernel runsc install {OLD}.0" in said
    put(LATEST, system_program().replace(f"~{OLD}.".encode(), b"~newbuild."))
    said = fail(capsys, "install", LATEST, *mirror)
    assert "is in use, and this is newbuild.0." in said
    assert "gvisor-kernel runsc install --file PATH" in said
    put(NEW, newer_program())
    assert main(["runsc", "install", NEW, *mirror]) == 0
    put(OLD, system_program())
    assert main(["runsc", "install", OLD, *mirror]) == 0, "it was asked for by name"
    chosen = find_chosen()
    assert chosen is not None
    assert chosen.name == f"{OLD}.0"


@inside
@pytest.mark.usefixtures("untried")
def test_a_release_that_is_older_than_the_one_in_use_is_asked_for_by_name(
    bucket: Bucket, capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From a mirror, a file, or the store."""
    monkeypatch.setattr(runsc, "TRIED", OLD)
    assert main(["runsc", "install", NEW]) == 0
    capsys.readouterr()
    bucket.put(LATEST, "gvisor.tar.bz2", make_archive({"runsc": system_program()}))
    file = tmp_path / "runsc"
    file.write_bytes(system_program())
    for words in ((), (LATEST,), ("--file", str(file))):
        said = fail(capsys, "install", *words)
        assert f"The release {NEW}.0 is in use, and this is {OLD}.0." in said
    assert main(["runsc", "install", OLD, "--file", str(file)]) == 0
    assert main(["runsc", "use", NEW]) == 0
    capsys.readouterr()
    assert f"The release {NEW}.0 is in use" in fail(capsys, "install")
    assert main(["runsc", "install", OLD]) == 0


@pytest.mark.parametrize(
    ("version", "order"),
    [
        ("release-20260817.0", (20260817, 0)),
        ("0.0~20240729.12", (20240729, 12)),
        ("20260817", (20260817, 0)),
        ("20260817.1-12-gabcdef", (20260817, 1)),
        ("12345678abcd", None),
        ("VERSION_MISSING", None),
        ("", None),
    ],
)
def test_releases_are_ordered_by_date_and_point(
    version: str, order: tuple[int, int] | None
) -> None:
    assert release_order(version) == order


@inside
def test_a_release_that_cannot_start_a_kernel_is_refused(bucket: Bucket, capsys: Captured) -> None:
    """One that is no runsc, and one that prints what runsc prints and starts no sandbox."""
    bucket.put("20990101", "runsc", Path("/bin/true").read_bytes())
    assert "does not print its version" in fail(capsys, "install", "20990101")
    broken = newer_program().replace(b"/proc/self/exe", b"/proc/self/xxx")
    del bucket.files[bucket.path(NEW, "gvisor.tar.bz2")]
    bucket.put(NEW, "runsc", broken)
    said = fail(capsys, "install", NEW)
    assert "This release of gVisor cannot be used here, starting a sandbox failed" in said
    assert "partial" in kept()


@inside
@pytest.mark.parametrize("what", ["nothing", "a wrong digest", "half of it"])
@pytest.mark.usefixtures("untried")
def test_a_bucket_that_fails_changes_nothing(bucket: Bucket, capsys: Captured, what: str) -> None:
    path = bucket.path(NEW, "gvisor.tar.bz2")
    if what == "nothing":
        del bucket.files[path]
        said = fail(capsys, "install", NEW)
        assert f"There is no release {NEW} for {find_machine()} in {BASE}." in said
    elif what == "a wrong digest":
        bucket.files[path].body += b"x"
        assert "has not the digest" in fail(capsys, "install", NEW)
    else:
        bucket.files[path].send = send_halves
        assert "cannot be fetched" in fail(capsys, "install", NEW)
        assert len(parts()) == 1
        bucket.files[path].send = None
        assert main(["runsc", "install", NEW]) == 0
        assert bucket.ranges[-1] not in (None, "bytes=0-")
        assert names() == [f"{NEW}.0"]
    assert parts() == []


DRIVER = """
import importlib, os, signal, sys
place, number, *argv = sys.argv[1:]
if place == "untried":
    from gvisor_kernel.cli.checks import trial
    trial.try_release = lambda program, tell: []
else:
    module, _, name = place.partition(":")
    module = importlib.import_module(module)
    meant = getattr(module, name)
    def die(*arguments, **more):
        os.kill(os.getpid(), int(number))
        return meant(*arguments, **more)
    setattr(module, name, die)
from gvisor_kernel.cli.main import main
sys.exit(main(argv))
"""
PLACES = (
    "gvisor_kernel.releases.bucket:measure",
    "gvisor_kernel.releases.contents:unpack",
    "gvisor_kernel.cli.checks.trial:try_release",
    "gvisor_kernel.cli.checks.trial:check_kernel",
    "gvisor_kernel.releases.release_store:publish",
    "gvisor_kernel.releases.release_store:mark_for_removal",
)
AFTER = (
    "gvisor_kernel.cli.snapshots:build_for_release",
    "gvisor_kernel.releases.release_store:replace_file",
)
"""Where the release is installed, but not chosen."""


def die(place: str, number: int) -> int:
    """Install in a process that gets a signal when it begins ``place``; return its status."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, place, str(number), "runsc", "install", NEW],
        capture_output=True,
        text=True,
        timeout=scale_seconds(120),
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


@inside
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_who_dies_at_any_step_changes_nothing(
    bucket: Bucket, capsys: Captured, number: signal.Signals
) -> None:
    """The next install goes on, and removes what is left."""
    status = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[number]
    for place in PLACES:
        assert die(place, number) == status, place
        assert names() == [], place
        assert find_chosen() is None, place
        if number == signal.SIGINT:
            assert kept() in ([], ["partial"]), place
    asked = len(bucket.ranges)
    for place in AFTER:
        assert die(place, number) == status, place
        assert names() == [f"{NEW}.0"], place
        assert find_chosen() is None, place
    assert main(["runsc", "install", NEW]) == 0
    assert find_chosen() is not None
    assert len(bucket.ranges) == asked, "what was there was fetched again"
    assert kept() == [f"{NEW}.0", "chosen", "partial"]
    assert parts() == []


@inside
@pytest.mark.usefixtures("untried")
def test_who_dies_in_the_middle_of_a_file_goes_on(bucket: Bucket, capsys: Captured) -> None:
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        bucket.reached.clear()
        bucket.files[bucket.path(NEW, "gvisor.tar.bz2")].send = wait
        with installing(bucket) as process:
            process.send_signal(number)
            assert process.wait(scale_seconds(20)) == status
        assert names() == []
        assert len(parts()) == 1
    bucket.files[bucket.path(NEW, "gvisor.tar.bz2")].send = None
    assert main(["runsc", "install", NEW]) == 0
    assert str(bucket.ranges[-1]).removeprefix("bytes=")[0] != "0"
    assert kept() == [f"{NEW}.0", "chosen", "partial"]


@contextmanager
def installing(bucket: Bucket) -> Iterator[subprocess.Popen[str]]:
    """Run an install, to where the bucket waits in the middle of the archive."""
    argv = [sys.executable, "-c", DRIVER, "untried", "0", "runsc", "install", NEW]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as it:
        try:
            assert bucket.reached.wait(scale_seconds(30))
            wait_for_part(bucket)
            yield it
        finally:
            it.kill()


def wait_for_part(bucket: Bucket) -> None:
    """Wait until half of the archive is on the disk, as the bucket sent it."""
    half = len(newer_archive()) // 2
    deadline = threading.Event()
    for _ in range(int(scale_seconds(1000))):
        sizes = [path.stat().st_size for path in (own_store() / "partial").iterdir()]
        if sizes and max(sizes) >= half - 300_000:
            return
        deadline.wait(0.02)
    raise AssertionError("nothing was written")


@inside
def test_the_second_of_two_installs_is_refused(bucket: Bucket, capsys: Captured) -> None:
    bucket.files[bucket.path(NEW, "gvisor.tar.bz2")].send = wait
    with installing(bucket) as process:
        assert main(["runsc", "install", OLD]) == 1
        assert "Another process installs a release of runsc now." in capsys.readouterr().err
        bucket.go.set()
        out = process.communicate(timeout=scale_seconds(120))[0]
        assert process.returncode == 0, out
    assert names() == [f"{NEW}.0"]


@contextmanager
def mounted(options: str) -> Iterator[None]:
    """Have the store on a file system of its own."""
    own_store().mkdir(parents=True, exist_ok=True)
    argv = ["mount", "-t", "tmpfs", "-o", f"mode=755,{options}", "tmpfs", str(own_store())]
    subprocess.run(argv, check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(own_store())], check=True, timeout=20)


@mounts
def test_a_noexec_mount_is_named(bucket: Bucket, capsys: Captured) -> None:
    with mounted("noexec"):
        assert "mounted noexec" in fail(capsys, "install", NEW)
        assert kept() == []
    assert bucket.seen == []


@mounts
def test_a_full_disk_is_named(
    bucket: Bucket, capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything is fetched, copied or unpacked; and when it fills up while one is written."""
    size = len(newer_archive())
    file = tmp_path / "gvisor.tar.bz2"
    file.write_bytes(newer_archive())
    with mounted("size=20m"):
        for words in ((NEW,), ("--file", str(file))):
            assert "too little free space" in fail(capsys, "install", *words)
        assert parts() == []
        assert bucket.ranges == [None], "a file was fetched"
        part = own_store() / "partial" / hashlib.sha512(newer_archive()).hexdigest()
        part.write_bytes(newer_archive())
        assert "too little free space" in fail(capsys, "install", NEW)
        part.unlink()
        monkeypatch.setattr(fetching, "UNPACKED", 0)
        assert "No space left on device" in fail(capsys, "install", NEW)
        assert len(parts()) == 1
    monkeypatch.setattr(fetching, "UNPACKED", -1)
    with mounted(f"size={size // 2}"):
        assert "No space left on device" in fail(capsys, "install", NEW)
        assert parts() == []


# -- updates ---------------------------------------------------------------------------------------


@inside
def test_updates_are_told_with_their_days(bucket: Bucket) -> None:
    check = check_updates()
    assert check.state == "warning"
    assert check.fact == (
        f"{BASE} has a release of gVisor from 2025-06-15; kernels start with {OLD}.0, from"
        " 2023-11-14"
    )
    assert check.fix == "gvisor-kernel runsc install latest"
    bucket.files = {path: file for path, file in bucket.files.items() if OLD not in path}
    assert "which is not there" in check_updates().fact


@inside
def test_the_newest_release_is_told(bucket: Bucket) -> None:
    with write() as draft:
        (draft / "runsc").write_bytes(newer_program())
        publish(draft, NEW + ".0", NEW, "ab", f"{BASE}/release/{NEW}/x86_64/gvisor.tar.bz2")
    choose(NEW)
    check = check_updates()
    assert check.state == "ok"
    assert check.fact == f"{NEW}.0 is the newest release of gVisor, from 2025-06-15"


@inside
def test_nothing_but_the_option_asks_for_updates(
    bucket: Bucket, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gvisor_kernel.cli import doctor

    monkeypatch.setattr(doctor, "find_checks", lambda runtime: iter(()))
    assert main(["doctor", "--json"]) == 0
    assert bucket.seen == []
    assert main(["doctor", "--json", "--updates"]) == 0
    found = json.loads(capsys.readouterr().out.partition("}\n{")[2].join(("{", "")))
    assert [check["name"] for check in found["checks"]] == ["updates"]
    bucket.files.clear()
    assert main(["doctor", "--updates"]) == 1


@needs_all
@inside
def test_the_real_bucket_has_what_is_expected(tmp_path: Path) -> None:
    """Where it can be had: the newest release, and the one that was tried."""
    try:
        _, modified = fetching.ask(BASE, LATEST)
    except ReleaseError as error:
        pytest.skip(f"gVisor's bucket cannot be asked from here: {error.fact}")
    assert modified is not None
    path, _ = fetching.fetch(BASE, [TRIED], tmp_path, lambda words, done: None)
    (tmp_path / "draft").mkdir()
    unpack(path, tmp_path / "draft")
    assert os.access(tmp_path / "draft" / "runsc", os.X_OK)
