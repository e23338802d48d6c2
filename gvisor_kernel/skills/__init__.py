"""Skills: folders of text and scripts that kernels read at /mnt/skills. Read, packed, installed.

``archive`` reads ZIP files of strangers, ``package`` says what a skill is, ``store`` keeps those
of a user. None of it runs anything of a skill: that happens inside sandboxes only.
"""

from gvisor_kernel.skills.package import SUFFIX, Skill, pack_skill, read_folder, read_package
from gvisor_kernel.skills.store import (
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
