"""``runsc``: install, list, choose and remove releases of gVisor's runsc."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gvisor_kernel.cli.arguments import add_commands, add_json
from gvisor_kernel.cli.output import describe_age, print_json, print_table
from gvisor_kernel.errors import ReleaseError, RuntimeMissing
from gvisor_kernel.releases.bucket import BASE, LATEST, TRIED, Report
from gvisor_kernel.releases.release_store import (
    PROGRAM,
    SYSTEM,
    Release,
    choose,
    find_chosen,
    find_release,
    find_releases,
    locked_install,
    publish,
    release_name,
    remove,
    write,
)

# by path: in this user's store of releases

RELEASE = re.compile(r"[0-9]{8}(\.[0-9]{1,3})?")


def add_runsc(parser: argparse.ArgumentParser) -> None:
    """Declare the commands of ``runsc`` and their arguments."""
    add = add_commands(parser)
    install = add(
        "install",
        run_install,
        "fetch a release of runsc, try it, and let new kernels start with it",
        f"RELEASE is a date such as {TRIED}, or one with a point, or {LATEST}. By default it is\n"
        f"{TRIED}, which was tried with this version, or {LATEST} where that is gone.\n"
        "As root, the release is for all users. A running kernel keeps its own until its end.",
    )
    install.add_argument("release", metavar="RELEASE", nargs="?", help="see below")
    where = install.add_mutually_exclusive_group()
    where.add_argument(
        "--file", metavar="PATH", help="take the release from a gvisor.tar.bz2 or a runsc on disk"
    )
    where.add_argument(
        "--from",
        metavar="URL",
        dest="base",
        default=BASE,
        help="fetch it from a mirror, whose layout is that of %(default)s (the default)",
    )
    install.add_argument(
        "--sha512",
        metavar="DIGEST|FILE",
        help="the digest that the file must have, or a file of sha512sum with it (default: the one"
        " beside the file in the bucket)",
    )
    listing = add("list", run_list, "list the releases, and what uses them")
    add_json(listing)
    use = add("use", run_use, "let new kernels start with another release")
    use.add_argument("release", metavar="RELEASE", help=f"a release that is installed, or {SYSTEM}")
    removing = add("remove", run_remove, "remove releases that no sandbox runs with")
    removing.add_argument("release", metavar="RELEASE", nargs="+", help="what list shows")


def run_install(arguments: argparse.Namespace) -> int:
    """``runsc install``: install a release, and choose it. Return 0.

    :raises ReleaseError: when it cannot be had, is not what it should be, or cannot be used here
    """
    install(arguments.release, arguments.base, arguments.file, arguments.sha512)
    return 0


def install(
    asked: str | None = None,
    base: str = BASE,
    file: str | None = None,
    sha512: str | None = None,
) -> Release:
    """Install a release of runsc, and let new kernels start with it. Prints what is done.

    ``asked``: its date, or ``latest``; see ``add_runsc``. What fails leaves nothing but the part of
    the file that was fetched.

    :raises ReleaseError: when it cannot be had, is not what it should be, or cannot be used here
    """
    from gvisor_kernel.cli.images import progress

    if asked is not None and asked != LATEST and not RELEASE.fullmatch(asked):
        raise ReleaseError(
            f"There is no release {asked!r} of runsc.",
            f"name a date, such as {TRIED}, or {LATEST}.",
        )
    with locked_install():
        release = None if file else find_release(asked or TRIED)
        if release is None:
            with progress() as report:
                release = _install_new(asked, base, file, sha512, report)
            print(f"Installed the release {release.name} of runsc.")
        _use(release.name)
    return release


def _install_new(
    asked: str | None, base: str, file: str | None, sha512: str | None, report: Report
) -> Release:
    """Fetch a release, try it, and publish it."""
    from gvisor_kernel.cli.checks.trial import try_release
    from gvisor_kernel.releases import bucket
    from gvisor_kernel.runtimes.runsc.command_line import find_runsc

    with write() as draft:
        digest, names = bucket.find_digest(sha512) if sha512 else (None, bucket.FILES)
        if file:
            fetched = bucket.copy(Path(file), draft.parent, digest)
        else:
            base = bucket.check_base(base, known=digest is not None)
            wanted = [asked] if asked else [TRIED, LATEST]
            fetched = bucket.fetch(base, wanted, draft.parent, report, digest, names)
        report("Unpacking", 1.0)
        bucket.unpack(fetched.path, draft)
        program = draft / PROGRAM
        try:
            version = find_runsc(str(program)).version
            name = release_name(version)
            if asked and asked != LATEST and asked not in (name, name.rpartition(".")[0]):
                raise ReleaseError(
                    f"The release {asked} was asked for, and {fetched.url} has {name}.",
                    "nothing was changed; ask whoever keeps that address.",
                )
            try_release(program, lambda words: report(f"Trying {name}: {words}", 1.0))
        except RuntimeMissing as error:
            raise ReleaseError(error.fact, error.hint, error.detail) from error
        release = publish(draft, name, version, bucket.measure(program), fetched.url)
    fetched.forget()
    return release


def _use(name: str) -> None:
    """Make the snapshots of all kernelspecs for a release, and choose it. Prints what is done."""
    from gvisor_kernel.cli.snapshots import build_for_release

    build_for_release(name)
    choose(name)
    what = "the system's runsc" if name == SYSTEM else f"the release {name} of runsc"
    print(f"New kernels start with {what}.")


def run_use(arguments: argparse.Namespace) -> int:
    """``runsc use``: choose a release. Return 0.

    :raises ReleaseError: when there is no such release
    """
    name = arguments.release
    if name != SYSTEM:
        name = find_named(name).name
    _use(name)
    return 0


def find_named(name: str) -> Release:
    """Return an installed release.

    :raises ReleaseError: when there is none of that name
    """
    found = find_release(name)
    if found is None:
        raise ReleaseError(
            f"There is no release {name!r} of runsc.",
            "list them: gvisor-kernel runsc list; or install it: gvisor-kernel runsc install"
            f" {name if RELEASE.fullmatch(name) else ''}".rstrip()
            + ".",
        )
    return found


def run_remove(arguments: argparse.Namespace) -> int:
    """``runsc remove``: remove releases. Return 0.

    :raises ReleaseError: when there is no such release, or it is used
    """
    from gvisor_kernel.runtimes.state import records

    for text in arguments.release:
        release = find_named(text)
        with records.locked():
            remove(release)
        print(f"Removed the release {release.name} of runsc.")
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    """``runsc list``: print a row for each release. Return 0.

    :raises ReleaseError: when somebody else could change a store
    """
    found = list(describe_all())
    if arguments.json:
        print_json(found)
        return 0
    rows = [make_row(one) for one in found]
    if not rows:
        print("There is no runsc. Install one: gvisor-kernel runsc install")
        return 0
    print_table(("RELEASE", "CHOSEN"), ("AGE", "SANDBOXES", "SNAPSHOTS"), "FROM", rows)
    return 0


def make_row(one: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a release's row in ``list``."""
    name, released = one["name"], one["released"]
    return (
        name if one["installed"] else f"{SYSTEM} ({name})",
        "yes" if one["chosen"] else "",
        "?" if released is None else describe_age(time.time() - released),
        str(len(one["sandboxes"])),
        str(len(one["snapshots"])),
        one["from"],
    )


def describe_all() -> Iterator[dict[str, Any]]:
    """Yield all releases and the system's runsc, as in ``list --json``. Times are seconds since the
    epoch; the system's is not ``installed``."""
    from gvisor_kernel.runtimes.runsc.command_line import find_runsc
    from gvisor_kernel.runtimes.state.listed import find_all
    from gvisor_kernel.snapshots.key import digest
    from gvisor_kernel.snapshots.snapshot_store import Store

    chosen, sandboxes, snapshots = find_chosen(), find_all(), Store.open().snapshots()
    for release in (*find_releases(), None):
        key = ""
        try:
            runsc = find_runsc(str(release.program) if release else SYSTEM)
            key = digest([runsc.path, runsc.version, runsc.fingerprint])
            name, path = release_name(runsc.version), Path(runsc.path)
        except RuntimeMissing:
            if release is None:
                return
        shown = release or Release(name, path.parent, name, "", str(path), 0.0, shared=True)
        used = [
            it.id for it in sandboxes if it.record.program.partition("\n")[0] == str(shown.program)
        ]
        yield {
            "name": shown.name,
            "path": str(shown.program),
            "released": find_date(shown.name),
            "installed": shown.installed or None,
            "shared": shown.shared,
            "sha512": shown.sha512 or None,
            "from": shown.source,
            "chosen": chosen == release,
            "sandboxes": used,
            "snapshots": [it.meta.key for it in snapshots if it.meta.parts.get("runtime") == key],
        }


def find_date(name: str) -> float | None:
    """Return the day in the name of a release, in seconds since the epoch."""
    try:
        return datetime.strptime(name[:8], "%Y%m%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
