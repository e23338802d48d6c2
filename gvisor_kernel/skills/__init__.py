"""Skills: folders of texts and scripts that kernels read at /mnt/skills.

``archive`` parses untrusted ZIP files, ``package`` validates and packs a skill, ``skill_store``
keeps the installed skills of a user. No code of a skill runs here, but inside sandboxes only.
"""

from gvisor_kernel.skills.package import SUFFIX, Skill, pack_skill, read_folder, read_package
from gvisor_kernel.skills.skill_store import (
    FOLDERS,
    Installed,
    SkillStore,
    default_folder,
    find_shipped,
    prepare_skills,
    shipped_skills,
)

__all__ = [
    "FOLDERS",
    "SUFFIX",
    "Installed",
    "Skill",
    "SkillStore",
    "default_folder",
    "find_shipped",
    "pack_skill",
    "prepare_skills",
    "read_folder",
    "read_package",
    "shipped_skills",
]
