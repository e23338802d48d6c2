"""``skills``: pack, check, install, list and remove the skills that kernels see at /mnt/skills.

The commands work on this user's skills, or on the folder that Jupyter's configuration names.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

from gvisor_kernel.cli.arguments import add_commands, add_json
from gvisor_kernel.cli.output import print_json, print_table
from gvisor_kernel.config.validators import INSTALLED_SKILLS
from gvisor_kernel.errors import SkillError
from gvisor_kernel.host.private_directories import replace_file
from gvisor_kernel.shown_text import describe_size, printable_name
from gvisor_kernel.skills import (
    SUFFIX,
    Installed,
    Skill,
    SkillStore,
    pack_skill,
    read_folder,
    read_package,
    shipped_skills,
)
from gvisor_kernel.spec.layout import SKILLS


def open_store() -> SkillStore:
    """Open the store of the skills that the next kernel sees.

    :raises SkillError: when Jupyter's configuration turns skills off
    :raises SettingError: when a setting in Jupyter's configuration is wrong
    """
    from gvisor_kernel.jupyter.plan_factory import make_provisioner, read_configuration

    setting = make_provisioner({}, read_configuration()).sandbox_spec().skills
    if setting is None:
        raise SkillError(
            "Jupyter's configuration sets skills to None: kernels see none.",
            f'set c.GVisorProvisioner.skills to "{INSTALLED_SKILLS}" or to a folder.',
        )
    if setting != INSTALLED_SKILLS:
        return SkillStore(Path(setting), keeps_shipped=False)
    store = SkillStore.of_user()
    with contextlib.suppress(SkillError):  # the command itself reports the problem
        store.refresh()
    return store


def add_skills(parser: argparse.ArgumentParser) -> None:
    """Declare the commands of ``skills`` and their arguments."""
    add = add_commands(parser)
    pack = add("pack", run_pack, "pack the skill in a folder into a package file")
    pack.add_argument("directory", metavar="DIR", help="the folder that contains SKILL.md")
    pack.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the package to write (default: NAME.skill in the current directory)",
    )
    check = add("check", run_check, "check that a package is valid, and list its files")
    check.add_argument("file", metavar="FILE", help="the package, such as NAME.skill")
    install = add(
        "install",
        run_install,
        "install a package, for all kernels that start from now on",
        "If FILE is no file but the name of a skill that comes with gvisor-kernel, that skill is\n"
        "restored.",
    )
    install.add_argument("file", metavar="FILE", help="the package, such as NAME.skill")
    install.add_argument(
        "--examples",
        action="store_true",
        help="install it at /mnt/skills/examples (default: /mnt/skills/public)",
    )
    listing = add(
        "list",
        run_list,
        "list the skills that kernels see",
        "Long descriptions are cut; --json prints them in full.",
    )
    add_json(listing)
    remove = add("remove", run_remove, "remove a skill")
    remove.add_argument("name", metavar="NAME", help='the name that "skills list" shows')


def run_pack(arguments: argparse.Namespace) -> None:
    """``skills pack``: write the package of the skill in a folder.

    :raises SkillError: when it is not a valid skill, or the package cannot be written
    """
    directory = Path(arguments.directory)
    skill = read_folder(directory)
    output = Path(arguments.output or f"{skill.name}{SUFFIX}")
    if output.resolve().is_relative_to(directory.resolve()):
        raise SkillError(
            f"The package {output} would be in the folder that is packed.",
            "name a file outside of that folder with -o.",
        )
    write_whole(output, pack_skill(skill))
    print(f"Packed {printable_name(str(output))}: {describe(skill)}")
    for name in skill.left_out[:20]:
        print(f"Left out {printable_name(name)}")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step. A symbolic link at ``path`` is replaced, not followed.

    :raises SkillError: when the file cannot be written
    """
    try:
        umask = os.umask(0)
        os.umask(umask)
        replace_file(path, content, 0o666 & ~umask)
    except OSError as error:
        raise SkillError(
            f"{path} cannot be written: {error.strerror}.",
            "name another file with -o, or check its folder and whether the disk is full.",
        ) from error


def describe(skill: Skill) -> str:
    """Describe a skill in one line: its name, its number of files, its size."""
    count = len(skill.files)
    return f'the skill "{printable_name(skill.name)}", {count} files, {describe_size(skill.size)}'


def run_check(arguments: argparse.Namespace) -> None:
    """``skills check``: print what a package contains. Installs nothing.

    :raises SkillError: when it is not a valid skill
    """
    skill = read_package(Path(arguments.file))
    print(f"{printable_name(arguments.file)} is valid: {describe(skill)}")
    print(printable_name(skill.description))
    for name in sorted(skill.files):
        print(f"  {printable_name(name)}")


def run_install(arguments: argparse.Namespace) -> None:
    """``skills install``: install a package, or restore a skill of gvisor-kernel.

    :raises SkillError: when it is not a valid skill, or the folder of skills cannot be changed
    """
    name, store = str(arguments.file), open_store()
    if "/" not in name and not os.path.exists(name) and store.keeps_shipped:  # noqa: PTH110 - never raises
        if name not in shipped_skills():
            shipped = ", ".join(sorted(shipped_skills()))
            raise SkillError(
                f"{name[:100]} is neither a file nor a skill that comes with gvisor-kernel.",
                f"give a package, such as NAME.skill, or one of {shipped}.",
            )
        store.restore(name)
        print(f"Restored the skill {name} that comes with gvisor-kernel.")
        return
    skill = read_package(Path(name))
    folder = "examples" if arguments.examples else "public"
    replaced = store.install(skill, folder)
    print(f"{'Replaced' if replaced else 'Installed'} {describe(skill)}")
    print(f"New kernels see it at {SKILLS[folder]}/{skill.name}")


def make_row(skill: Installed) -> tuple[str, ...]:
    """Return the cells of a skill's row in ``list``."""
    return (
        skill.name,
        skill.folder,
        "gvisor-kernel" if skill.shipped else "you",
        "not usable, see below" if skill.problem else skill.description,
    )


def run_list(arguments: argparse.Namespace) -> None:
    """``skills list``: print a row for each skill, then why some cannot be used.

    :raises SkillError: when Jupyter's configuration turns skills off
    """
    store = open_store()
    skills = store.list()
    if arguments.json:
        print_json([describe_installed(skill) for skill in skills])
        return
    if not skills:
        print(f"No skills in {printable_name(str(store.folder))}.")
        return
    print_table(("NAME", "FOLDER", "FROM"), (), "DESCRIPTION", map(make_row, skills), cut=True)
    for skill in skills:
        if skill.problem:
            print(printable_name(f"{skill.name} is not usable: {skill.problem}"))


def describe_installed(skill: Installed) -> dict[str, object]:
    """Return a skill for ``skills list --json``."""
    return {
        "name": skill.name,
        "folder": skill.folder,
        "seen_at": f"{SKILLS[skill.folder]}/{skill.name}",
        "directory": str(skill.directory),
        "shipped": skill.shipped,
        "description": skill.description,
        "problem": skill.problem or None,
    }


def run_remove(arguments: argparse.Namespace) -> None:
    """``skills remove``: remove a skill and print its folder.

    :raises SkillError: when there is no such skill, or it cannot be removed
    """
    removed = open_store().remove(arguments.name)
    print(f"Removed {printable_name(str(removed))}")
