"""``runsc``: install, list, choose and remove releases of gVisor's runsc."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gvisor_kernel.cli.arguments import add_commands, add_json
from gvisor_kernel.errors import ReleaseError, RuntimeMissing
from gvisor_kernel.releases import BASE, DATE, LATEST, SYSTEM, TRIED
from gvisor_kernel.shown_text import printable_name

# by path: what install has fetched, in this user's store of releases


def add_runsc(parser: argparse.ArgumentParser) -> None:
    """Declare the commands of ``runsc`` and their arguments."""
    add = add_commands(parser)
    installing = add(
        "install",
        run_install,
        "fetch a release of runsc, try it, and let new kernels start with it",
        f"RELEASE is a date such as {TRIED}, or one with a point, or {LATEST}. By default it is\n"
        f"{TRIED}, which this version was tried with, or {LATEST} where that is gone.\n"
        "It takes one to two minutes with the snapshots, some 100 MB for each kernelspec.\n"
        "As root, it is installed for all users. Running kernels keep their release to their end.",
    )
    installing.add_argument("release", metavar="RELEASE", nargs="?", help="see below")
    where = installing.add_mutually_exclusive_group()
    where.add_argument("--file", metavar="PATH", help="take a gvisor.tar.bz2 or a runsc on disk")
    where.add_argument(
        "--from",
        metavar="URL",
        dest="base",
        default=BASE,
        help="fetch it from a mirror with the layout of %(default)s (the default)",
    )
    installing.add_argument(
        "--sha512",
        metavar="DIGEST|FILE",
        help="the digest that the file must have, or a file of sha512sum (default: the one beside"
        " it in the bucket)",
    )
    add_json(add("list", run_list, "list the releases, and what uses them"))
    use = add("use", run_use, "let new kernels start with another release")
    use.add_argument("release", metavar=f"RELEASE|{SYSTEM}", help="what list shows")
    removing = add("remove", run_remove, "remove releases that no sandbox runs with")
    removing.add_argument("release", metavar="RELEASE", nargs="+", help="what list shows")


def run_install(arguments: argparse.Namespace) -> None:
    """``runsc install``: see ``install``."""
    install(arguments.release, arguments.base, arguments.file, arguments.sha512)


def install(
    asked: str | None = None, base: str = BASE, file: str | None = None, sha512: str | None = None
) -> None:
    """Install a release of runsc, and let new kernels start with it. Prints what is done.

    ``asked``: its date, or ``latest``; see ``add_runsc``. What fails leaves nothing but the part of
    the file that was fetched.

    :raises ReleaseError: when it cannot be had, is not what it should be, or cannot be used here
    """
    from gvisor_kernel.releases.release_store import find_release, locked_install

    if asked is not None and asked != LATEST and not DATE.fullmatch(asked):
        raise ReleaseError(f"{asked!r} is no release.", f"name a date like {TRIED}, or {LATEST}.")
    with locked_install():
        name = None
        if not file and not sha512 and base == BASE:  # what else is named has to be looked at
            with suppress(ReleaseError):
                name = find_release(asked or TRIED).name
        if name is None:
            name = _install_new(asked, base, file, sha512)
            print(f"Installed the release {name} of runsc.")
        else:
            _check_age(name, asked)
            print(f"The release {name} of runsc is already installed.")
        use(name)


def _install_new(asked: str | None, base: str, file: str | None, sha512: str | None) -> str:
    """Fetch a release, try it, and publish it. Return its name."""
    from gvisor_kernel.cli.checks.trial import try_release
    from gvisor_kernel.cli.images import progress
    from gvisor_kernel.releases import bucket
    from gvisor_kernel.releases.contents import unpack
    from gvisor_kernel.releases.release_store import PROGRAM, publish, release_name, write
    from gvisor_kernel.runtimes.runsc.command_line import find_runsc

    said: list[str] = []

    def report(words: str, done: float = 1.0) -> None:
        if words not in said:  # each step once: the first has the size
            said.append(words)
            print(printable_name(words), flush=True)
        show(words, done)

    with progress() as show, write() as draft:
        digest, names = bucket.find_digest(sha512) if sha512 else (None, bucket.FILES)
        if file:
            path, source = bucket.copy(Path(file), draft, digest)
        else:
            base = bucket.check_base(base, known=digest is not None)
            wanted = [asked] if asked else [TRIED, LATEST]
            path, source = bucket.fetch(base, wanted, draft.parent, report, digest, names)
        expected = asked if file else source.split("/")[-3]
        bucket.check_room(path.parent, path.stat().st_size, path.stat().st_size)
        report("Unpacking")
        program = draft / PROGRAM
        try:
            unpack(path, draft)
            if file:
                path.unlink()
            version = find_runsc(str(program)).version
            name = release_name(version)
            if expected not in (None, LATEST, name, name.rpartition(".")[0]):
                raise ReleaseError(
                    f"The release {expected} was asked for, and this is {name}.",
                    "nothing was changed; ask whoever keeps that address.",
                )
            _check_age(name, asked, "" if file else TRIED)
            try_release(program, lambda words: report(f"Trying {name}: {words}"))
        except (ReleaseError, RuntimeMissing) as error:
            fact = error.fact.replace(str(program), PROGRAM)
            raise ReleaseError(f"{source}: {fact}", error.hint, error.detail) from error
        publish(draft, name, version, bucket.measure(program), source)
    if not file:
        path.unlink()
    return name


def _check_age(name: str, asked: str | None, tried: str = "") -> None:
    """Check that a release which was not asked for by its date is not older than the one in use,
    and than ``tried``.

    :raises ReleaseError: when it is, or has no date though ``tried`` has one
    """
    from gvisor_kernel.releases.release_store import release_name, release_order
    from gvisor_kernel.runtimes.runsc.command_line import find_runsc

    if asked not in (None, LATEST):
        return
    used = ""
    with suppress(RuntimeMissing):
        used = find_runsc().version
    order = release_order(name)
    if order is None and not tried:  # a file that somebody has built
        return
    for version, what in ((used, "in use"), (tried, "known to be there")):
        bound = release_order(version)
        if bound is not None and (order is None or order < bound):
            raise ReleaseError(
                f"The release {release_name(version)} is {what}, and this is {name}.",
                "nothing was changed; to have it all the same, ask for it: gvisor-kernel runsc"
                f" install {name if order else '--file PATH'}.",
            )


def use(name: str) -> None:
    """Make the snapshots of the kernelspecs for a release, and choose it. Prints what is done.

    :raises ReleaseError: when there is no such release
    :raises RuntimeMissing: when it cannot be run, or the system has none
    """
    from gvisor_kernel.cli.snapshots import build_for_release
    from gvisor_kernel.releases.release_store import choose, find_release
    from gvisor_kernel.runtimes.runsc.command_line import find_runsc

    what = "the system's runsc"
    if name != SYSTEM:
        name = find_release(name).name
        what = f"the release {name} of runsc"
    find_runsc(name)
    build_for_release(name)
    choose(name)
    print(f"New kernels start with {what}.")


def run_use(arguments: argparse.Namespace) -> None:
    """``runsc use``: choose a release.

    :raises ReleaseError: when there is no such release
    """
    use(arguments.release)


def run_remove(arguments: argparse.Namespace) -> None:
    """``runsc remove``: remove releases.

    :raises ReleaseError: when there is no such release, or it is used
    """
    from gvisor_kernel.releases.release_store import find_release, remove
    from gvisor_kernel.runtimes.state import records
    from gvisor_kernel.runtimes.state.kept_packages import read_kept
    from gvisor_kernel.runtimes.state.listed import find_all
    from gvisor_kernel.runtimes.state.saved import SAVED

    for text in arguments.release:
        if text == SYSTEM:
            raise ReleaseError(
                "The system's runsc was not installed by this command.",
                "remove it as it was installed, such as by: sudo apt-get remove runsc.",
            )
        release = find_release(text)
        path = os.path.realpath(release.program)
        users = [it for it in find_all() if it.record.program.startswith(f"{path}\n")]
        for it in users:
            kept: dict[str, str] = {}
            with suppress(OSError, ValueError):
                kept = read_kept(it.directory / SAVED)
            if it.record.saved and path not in kept:
                raise ReleaseError(
                    f"The kernel {it.id} was saved by the release, and has no copy of it yet.",
                    f"try again in a minute; or give it up: gvisor-kernel kill {it.id}",
                )
        with records.locked():
            try:
                remove(release)
            except ReleaseError as error:
                lines = [f"{it.id} belongs to process {it.record.owner.pid}" for it in users]
                raise ReleaseError(error.fact, error.hint, "\n".join(lines)) from error
        print(f"Removed the release {release.name} of runsc.")


def run_list(arguments: argparse.Namespace) -> None:
    """``runsc list``: print a row for each release.

    :raises ReleaseError: when somebody else could change a store
    """
    from gvisor_kernel.cli.output import print_error, print_json, print_table
    from gvisor_kernel.releases.release_store import find_chosen

    found = list(describe_all())
    if arguments.json:
        print_json(found)
    elif found:
        titles = ("RELEASE", "CHOSEN"), ("AGE", "SANDBOXES", "SNAPSHOTS")
        print_table(*titles, "FROM", map(make_row, found))
    else:
        print("There is no runsc. Install it: gvisor-kernel runsc install")
    try:
        find_chosen()
    except ReleaseError as error:
        print_error(error)


def make_row(one: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a release's row in ``list``."""
    from gvisor_kernel.releases.release_store import SHARED
    from gvisor_kernel.runtimes.runsc.checks import describe_age, find_release_date

    today, version = datetime.now(UTC).date(), one["version"]
    released = find_release_date(version, today)
    return (
        one["name"] if one["installed"] else f"{SYSTEM} ({version})",
        "yes" if one["chosen"] else "",
        describe_age((today - released).days) if released else "?",
        str(len(one["sandboxes"])),
        str(len(one["snapshots"])),
        f"{one['from']} (root's)" if Path(one["path"]).is_relative_to(SHARED) else one["from"],
    )


def describe_all() -> Iterator[dict[str, Any]]:
    """Yield all releases and the system's runsc, as in ``list --json``. ``installed``: in seconds
    since the epoch; null for the system's."""
    from gvisor_kernel.releases.release_store import Release, find_chosen, find_releases
    from gvisor_kernel.runtimes.runsc.command_line import find_runsc
    from gvisor_kernel.runtimes.state.listed import find_all
    from gvisor_kernel.snapshots.snapshot_store import Store

    sandboxes, snapshots = find_all(), Store.open().snapshots()
    chosen: Release | str | None = "unusable"
    with suppress(ReleaseError):
        chosen = find_chosen()
    found: list[tuple[Any, ...]] = [
        (it.name, it.version, os.path.realpath(it.program), it.source, it.installed, it == chosen)
        for it in find_releases()
    ]
    with suppress(RuntimeMissing):
        runsc = find_runsc(SYSTEM)
        found.append((SYSTEM, runsc.version, runsc.path, runsc.path, None, chosen is None))
    for name, version, path, source, installed, is_chosen in found:
        start = f"{path}\n"  # of the names of its program; see kept_programs
        made = [it.meta for it in snapshots if it.meta.label.get("program", "").startswith(start)]
        yield {
            **{"name": name, "version": version.removeprefix("0.0~"), "path": path, "from": source},
            **{"installed": installed, "chosen": is_chosen},
            "sandboxes": [it.id for it in sandboxes if it.record.program.startswith(start)],
            "snapshots": [meta.key for meta in made],
        }
