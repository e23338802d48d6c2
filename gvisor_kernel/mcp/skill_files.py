"""The skills of this user, as prompts and resources read them."""

from __future__ import annotations

import asyncio

from gvisor_kernel.errors import SandboxError, SkillError
from gvisor_kernel.skills.package import read_folder
from gvisor_kernel.skills.store import Installed, SkillStore, prepare_skills

FILE = "SKILL.md"


async def list_skills() -> list[Installed]:
    """Return the valid skills that a kernel sees."""
    return await asyncio.to_thread(_list)


def _list() -> list[Installed]:
    folder = prepare_skills()
    if folder is None:
        return []
    store = SkillStore(folder, keeps_shipped=False)
    return [skill for skill in store.list() if not skill.problem]


async def read_skill(name: str) -> tuple[Installed, str]:
    """Return a skill and the text of its SKILL.md.

    :raises SandboxError: there is none of that name
    """
    return await asyncio.to_thread(_read, name)


def _read(name: str) -> tuple[Installed, str]:
    skills = {skill.name: skill for skill in _list()}
    skill = skills.get(name)
    if skill is None:
        names = ", ".join(skills) or "none"
        raise SandboxError(f"There is no skill {name[:80]!r}.", f"there are: {names}.")
    try:
        file = read_folder(skill.directory).files[FILE]
    except (SkillError, KeyError) as error:
        raise SandboxError(f"The skill {name} cannot be read any more.") from error
    return skill, file.content.decode("utf-8", "replace")
