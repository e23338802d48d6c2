"""Skills: folders of texts and scripts that kernels read at /mnt/skills.

``archive`` parses untrusted ZIP files, ``package`` validates and packs a skill, ``store`` keeps the
installed skills of a user. Nothing here runs code of a skill; that happens inside sandboxes only.
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
