"""What of the host a sandbox is shown: the mounts of the host image, found and put together.

Looks at the host, and makes the outputs folder and the empty ones, and the user's of skills;
mounts nothing.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path, user_data_path, user_state_path

import gvisor_kernel
from gvisor_kernel.accept import NOT_A_SOURCE, is_writable_allowed
from gvisor_kernel.config import DEFAULTS, INSTALLED_SKILLS, SandboxSpec
from gvisor_kernel.errors import LaunchError, SettingError
from gvisor_kernel.runtimes.base import LaunchRequest
from gvisor_kernel.runtimes.rootfs import find_etc_binds
from gvisor_kernel.runtimes.world import World, follow, is_too_wide
from gvisor_kernel.skills import prepare_skills
from gvisor_kernel.spec import layout
from gvisor_kernel.spec.layout import Bind, Mount, Tmpfs, is_within

log = logging.getLogger(__name__)

GUEST_PARTS = ("__init__.py", "link", "guest")
SYSTEM_ROOTS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
OWN_PLACES = (
    layout.WORKSPACE,
    "/mnt/user-data",
    "/mnt/skills",
    layout.TRANSCRIPTS,
    layout.RUN,
    layout.GUEST,
)


@dataclass(frozen=True)
class Outputs:
    """The folder that a kernel may write; None: one in the sandbox's memory."""

    path: str | None
    made: bool = False
    lent_by: tuple[int, int] | None = None
    """Its owner, where the sandbox has to own it meanwhile."""


@dataclass(frozen=True)
class Places:
    """Files and directories of one sandbox, below its state directory."""

    directory: Path

    @property
    def info(self) -> Path:
        return self.directory / "container_info.json"

    @property
    def empty(self) -> Path:
        return self.directory / "empty"

    @property
    def transcripts(self) -> Path:
        return self.directory / "transcripts"

    @property
    def rootfs(self) -> Path:
        return self.directory / "rootfs"

    @property
    def image(self) -> Path:
        """Where an image is mounted as an ordinary user, below ``rootfs``."""
        return self.directory / "image"

    @property
    def root(self) -> Path:
        """And where both are in one."""
        return self.directory / "root"

    @property
    def bundle(self) -> Path:
        return self.directory / "bundle"

    @property
    def runsc(self) -> Path:
        return self.directory / "runsc"

    @property
    def pid_file(self) -> Path:
        return self.runsc / "sentry.pid"

    @property
    def meminfo(self) -> Path:
        return self.directory / "meminfo"

    @property
    def panic_log(self) -> Path:
        return self.directory / "panic.log"

    @property
    def log(self) -> Path:
        return self.directory / "kernel.log"


def find_uploads(spec: SandboxSpec, request: LaunchRequest) -> str | None:
    """The folder of uploads, None for an empty one. Raises SettingError.

    The default shows a notebook's folder, but never a whole home or more, nor where keys of
    kernels are: that takes a setting.
    """
    if spec.uploads is None:
        return None
    path = os.path.realpath(request.folder / spec.uploads)
    if spec.uploads == DEFAULTS.uploads and (is_too_wide(path) or is_private(path)):
        log.info("The notebook's folder holds a home or Jupyter's own files, so uploads is empty")
        return None
    if not Path(spec.uploads).is_absolute():
        _check_below("uploads", spec.uploads, path, request.folder)
    if not Path(path).is_dir() or any(is_within(path, place) for place in NOT_A_SOURCE):
        raise SettingError(
            "uploads", spec.uploads, f"a folder of files that exists; {path} is none"
        )
    return path


def is_private(path: str) -> bool:
    """Whether ``path`` is or holds, or is below, what has the keys of kernels and of Jupyter."""
    own = (user_state_path("gvisor-kernel"), user_cache_path("gvisor-kernel"))
    places = (*map(os.path.realpath, own), _runtime_directory())
    return any(is_within(place, path) or is_within(path, place) for place in places)


def _runtime_directory() -> str:
    """Where Jupyter's servers write their tokens, and managers the connection files."""
    data = os.environ.get("JUPYTER_DATA_DIR") or user_data_path("jupyter")
    return os.path.realpath(os.environ.get("JUPYTER_RUNTIME_DIR") or Path(data, "runtime"))


def check_folder(spec: SandboxSpec, request: LaunchRequest) -> None:
    """Refuse a notebook's folder that is reached through a link which a kernel may have planted.

    What a kernel leaves in outputs is not to decide what a later one is shown. Raises LaunchError.
    """
    if spec.outputs is None:
        return
    links, real = follow(str(request.folder))
    absolute = spec.outputs.startswith("/")
    for link in links:
        planted = (
            is_within(link, spec.outputs) and link != spec.outputs
            if absolute
            else f"/{spec.outputs}/" in link
        )
        if planted:
            raise LaunchError(
                f"The notebook's folder {request.folder} is reached through the link {link},"
                " which lies in a folder of outputs: a kernel may have made it.",
                f"if you know the link, open the notebook where it really is, {real}.",
            )


def _check_below(name: str, value: str, path: str, folder: Path) -> None:
    """Raise SettingError where a relative setting leads out of the notebook's folder by a link."""
    real = os.path.realpath(folder)
    if not is_within(path, real):
        raise SettingError(
            name,
            value,
            f"a folder below the notebook's; {folder / value} leads to {path} by a link. Write"
            " that path itself if it is meant",
        )


def find_outputs(spec: SandboxSpec, request: LaunchRequest) -> Outputs:
    """The folder of outputs, made if need be. Raises SettingError.

    Where the default one cannot be made, outputs are gone afterwards, and the log says so.
    """
    if spec.outputs is None:
        return Outputs(None)
    path = Path(os.path.realpath(request.folder / spec.outputs))
    if not Path(spec.outputs).is_absolute():
        _check_below("outputs", spec.outputs, str(path), request.folder)
    try:
        if not is_writable_allowed(str(path)):
            raise PermissionError(errno.EPERM, "it is a folder of the system, or holds a home")
        path.mkdir()
    except FileExistsError:
        if path.is_dir():
            return Outputs(str(path))
        raise SettingError("outputs", spec.outputs, f"a folder; {path} is none") from None
    except OSError as error:
        if spec.outputs == DEFAULTS.outputs:
            log.warning("%s cannot be made (%s): outputs are not kept", path, error.strerror)
            return Outputs(None)
        raise SettingError(
            "outputs", spec.outputs, f"a folder that can be made ({path}: {error.strerror})"
        ) from error
    parent = path.parent.stat()
    if os.geteuid() == 0 and (parent.st_uid, parent.st_gid) != (0, 0):
        os.chown(path, parent.st_uid, parent.st_gid)  # it belongs to whom the folder belongs to
    return Outputs(str(path), made=True)


def keeps_outputs(spec: SandboxSpec, request: LaunchRequest) -> bool:
    """Whether ``find_outputs`` would find or make a folder of the host. Makes nothing."""
    if spec.outputs is None:
        return False
    path = Path(os.path.realpath(request.folder / spec.outputs))
    return path.is_dir() or (
        is_writable_allowed(str(path)) and os.access(path.parent, os.W_OK | os.X_OK)
    )


def find_skills(spec: SandboxSpec) -> dict[str, str]:
    """Those of the two folders of skills that there are. Raises nothing."""
    folder = prepare_skills() if spec.skills == INSTALLED_SKILLS else spec.skills
    if folder is None:
        return {}
    names = (name for name in ("public", "examples") if Path(folder, name).is_dir())
    return {name: os.path.realpath(Path(folder, name)) for name in names}


def plan_mounts(
    spec: SandboxSpec, world: World, places: Places, uploads: str | None, outputs: Outputs
) -> tuple[Mount, ...]:
    """Every mount of a sandbox, in order. Raises LaunchError, SettingError."""
    empty = os.path.realpath(places.empty)
    skills = {"public": empty, "examples": empty, **find_skills(spec)}
    transcripts = str(places.transcripts) if spec.transcripts else empty
    mounts: list[Mount] = [
        Bind(str(places.info), layout.CONTAINER_INFO),
        Bind(skills["public"], layout.SKILLS_PUBLIC, foreign=True),
        Bind(skills["examples"], layout.SKILLS_EXAMPLES, foreign=True),
        Tmpfs(layout.OUTPUTS, spec.disk_limit)
        if outputs.path is None
        else Bind(outputs.path, layout.OUTPUTS, read_only=False, foreign=outputs.lent_by is None),
        Bind(uploads or empty, layout.UPLOADS, foreign=True),
        Bind(transcripts, layout.TRANSCRIPTS, foreign=True),
    ]
    mounts += layout.scratch_mounts(spec)
    if world.tree is None:
        mounts += find_etc_binds()
    mounts += [_show(root, root) for root in world.roots]
    mounts += [_show(real, path) for path, real in world.aliases]
    package = Path(gvisor_kernel.__file__).parent
    mounts += [
        Bind(str(package / part), f"{layout.GUEST}/gvisor_kernel/{part}", foreign=True)
        for part in GUEST_PARTS
    ]
    for extra in layout.extra_binds(spec):
        _check_extra(extra, world)
        mounts.append(extra)
    return layout.order_mounts(mounts)


def _show(root: str, path: str) -> Bind:
    for place in OWN_PLACES:
        if is_within(path, place):
            raise LaunchError(
                f"The kernel's Python needs {path}, but {place} is the sandbox's own.",
                "let the Python environment, and packages that are installed as editable, lie"
                " somewhere else.",
            )
    # The system's files are shown as everybody may read them, a person's as that person may.
    return Bind(root, path, foreign=not any(is_within(root, system) for system in SYSTEM_ROOTS))


def _check_extra(extra: Bind, world: World) -> None:
    if not Path(extra.source).exists():
        raise SettingError("mounts", extra.source, "a list whose sources exist")
    links = (link for link, _ in world.links)
    aliases = (path for path, _ in world.aliases)
    own = () if world.tree is None else (world.python,)
    for path in (*world.roots, *links, *aliases, *own):
        if is_within(extra.target, path) or is_within(path, extra.target):
            raise SettingError(
                "mounts", extra.target, f"a list whose targets keep off {path}, which Python needs"
            )
