"""Files that may run later without being opened: a table of names, and its one question.

Writing such a file to a person's folder is enough: git, a shell, an editor, a build tool or an
interpreter reads it by itself. The table has names that a program looks for; what a person must
name as well, such as a script, is not in it. Names are compared as other file systems and git
compare them: by case, by Unicode's compatible forms, without characters that nobody sees.

Not in it: ``.gitattributes``, which can only choose what a configuration has; ``__init__.py`` and
modules beside a script, which are the code that a person runs; modules with a name of the standard
library, or of a package that many have, are in it, as nobody expects that ``import random`` runs a
file of the folder.
"""

from __future__ import annotations

import fnmatch
import re
import sys
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Patterns (``fnmatch``) of names with the same reason. One with "/" at its end stands for all
    that is in a folder of such a name; others are for a file's own name. ``needs_force``: also
    needs ``force``."""

    reason: str
    names: str = ""
    needs_force: bool = False


KINDS = (
    Kind(
        "git and its like run what it says",
        ".git .git/ *.git/ .bare/ git~1 git~1/ head .hg/ .svn/ .jj/ .bzr/",  # bare ones, too
        needs_force=True,
    ),
    Kind(
        "git, or a tool for its hooks, reads it",
        ".gitconfig .gitmodules .hgrc .husky/ .githooks/ lefthook* .lefthook* .pre-commit-*.y*ml",
    ),
    Kind(
        "a server that tests a repository runs it",
        ".github/ .gitea/ .forgejo/ .gitlab/ .gitlab-ci.yml .circleci/ .woodpecker/"
        " .woodpecker.y*ml .travis.yml .drone.yml .buildkite/ azure-pipelines.y*ml"
        " bitbucket-pipelines.yml appveyor.yml .appveyor.yml jenkinsfile .readthedocs.y*ml"
        " .gitpod.yml apt.txt runtime.txt packages.txt postbuild",
    ),
    Kind(
        "editors read it as they open the folder",
        ".vscode/ *.code-workspace .idea/ .zed/ .fleet/ .devcontainer/ .devcontainer.json .exrc"
        " .vimrc _vimrc .gvimrc .vim/ .nvimrc .nvim.lua .lvimrc .emacs .emacs.d/ .dir-locals*.el"
        " *.sublime-project .helix/ .ropeproject/",
    ),
    Kind(
        "assistants that write code follow it",
        ".claude/ .cursor/ .codex/ .gemini/ .windsurf/ .mcp.json claude.md claude.local.md"
        " agents.md agents.*.md gemini.md qwen.md skill.md .qwen/ .cursorrules"
        " .windsurfrules .aider* .opencode/ opencode.json*",
    ),
    Kind(
        "shells, or programs that they start, read it",
        ".envrc .env .env.* .direnv/ .direnvrc .tool-versions .mise.*toml mise.*toml .mise/"
        " .bashrc .bash_* .profile .zshrc .zshenv .zprofile .zlogin .zlogout .kshrc .mkshrc .cshrc"
        " .tcshrc .login .logout .inputrc .xinitrc .xprofile .xsession .xsessionrc .pam_environment"
        " .tmux.conf .screenrc .gdbinit .lldbinit .curlrc .wgetrc .netrc .psqlrc .sqliterc"
        " .flaskenv",
    ),
    Kind(
        "it is a folder of settings, keys or programs of a home",
        ".ssh/ .gnupg/ .config/ .local/ .aws/ .kube/ .docker/ authorized_keys",
    ),
    Kind("a desktop may start it", "*.desktop .autostart/ autorun.inf desktop.ini"),
    Kind(
        "Python runs it as it starts or imports something else",
        "*.pth sitecustomize.py usercustomize.py pyvenv.cfg __pycache__/ *.py[co] *.so *.pyd"
        " .pdbrc .pdbrc.py pip.conf pip.ini .pypirc .venv/ venv/ env/ site-packages/"
        " *.dist-info/ *.egg-info/ activate*"
        " postactivate matplotlibrc",
    ),
    Kind(
        "Jupyter and IPython run it as they start, or restore it",
        "ipython*_config.* jupyter*_config.* .ipython/ .jupyter/ .ipynb_checkpoints/ .jupytext*"
        " jupytext.* nbgrader_config.* voila.json voila.py kernel.json jupyterhub.sqlite"
        " jupyterhub_cookie_secret",
    ),
    Kind(
        "tools for tests, checks and packages run what it says",
        "conftest.py pytest.ini .pytest.ini tox.ini noxfile.py setup.py setup.cfg pyproject.toml"
        " mypy.ini .mypy.ini pylintrc .pylintrc .flake8 .coveragerc tasks.py fabfile.py dodo.py"
        " pixi.toml uv.toml hatch.toml test_*.py *_test.py conf.py gunicorn.conf.py mkdocs.y*ml"
        " _quarto.y*ml ansible.cfg test*.txt *requirements*.txt requirements/ constraints*.txt"
        " entry_points.txt",
    ),
    Kind(
        "tools that build run it",
        "makefile makefile.* gnumakefile bsdmakefile *.mk *.mak justfile .justfile *.just"
        " taskfile.y*ml rakefile gemfile wscript sconstruct sconscript cmakelists.txt *.cmake"
        " meson.build build.rs .cargo/ build.gradle* settings.gradle* gradle.properties gradlew*"
        " pom.xml .mvn/ dockerfile docker-compose*.y*ml compose.y*ml compose.*.y*ml vagrantfile"
        " procfile snakefile nextflow.config cargo.toml rust-toolchain* site_scons/ flake.nix"
        " latexmkrc .latexmkrc composer.json cmakepresets.json cmakeuserpresets.json project.json"
        " global.json",
    ),
    Kind(
        "tools that deploy run what it says",
        "*.tf *.tf.json *.tofu *.tofu.json *.tfvars *.tfvars.json terragrunt.hcl .terraform/"
        " serverless.* cdk.json vercel.json wrangler.* firebase.json devbox.json pulumi.*",
    ),
    Kind(
        "Node.js and its tools run what it says",
        "package.json .npmrc .yarnrc* .yarn/ .pnp.* .pnpmfile.* pnpm-workspace.yaml bunfig.toml"
        " deno.json* node_modules/ *.config.js *.config.[cm]js *.config.ts *.config.[cm]ts"
        " *.config.json .eslintrc* .prettierrc* .babelrc* .mocharc* gulpfile.* gruntfile.*"
        " tsconfig*.json jsconfig*.json package-lock.json npm-shrinkwrap.json nodemon.json nx.json"
        " turbo.json rush.json lerna.json bower.json angular.json",
    ),
    Kind(
        "R, Julia and other languages run it as they start",
        ".rprofile .renviron .rdata rprofile.site .julia/ startup.jl .octaverc startup.m .ghci"
        " .irbrc .pryrc .perldb renv/ .lintr .ocamlinit .iex.exs .rubocop.y*ml",
    ),
)
MODULE = Kind("Python takes it for a module of its standard library")
PACKAGE = Kind("Python takes it for a package that is often installed, and that tools import")
PACKAGES = re.compile(
    "pip|setuptools|pytest|numpy|pandas|matplotlib|ipython|ipykernel|jupyter.*|torch|sklearn|scipy"
    "|requests|notebook|nbformat|nbconvert|nbclient|ipywidgets|traitlets|tornado|zmq|yaml|jinja2"
    "|seaborn|plotly|polars|pyarrow|sqlalchemy|tensorflow|keras|transformers|wheel|virtualenv"
)
"""Folded names of packages. A sample: nobody knows what a person has installed."""
EXECUTABLE = Kind("it is executable on disk")
"""Kind of a file that is replaced, which keeps its rights; a new file is never executable."""
_HIDDEN = ("Cc", "Cf")
_PLAIN = re.compile(r"\w[\w.+=@,%-]*")
"""No hidden file, no option of a command, nothing that a recipe of make or a shell would split or
run."""
_DATA = (
    "csv tsv psv jsonl ndjson geojson parquet feather arrow orc avro xlsx npy npz h5 hdf5 nc mat"
    " fits dta sav onnx safetensors png jpg jpeg gif webp bmp tif tiff pdf wav mp3 ogg flac mp4"
    " webm"
)
"""Suffixes. No text, Markdown or JSON, YAML and their like: tools read such files by names that
nobody can list, and pytest runs what stands in some. No page or drawing with scripts; no archive,
which pip installs; no database, as some programs keep theirs where they are started; and nothing
that runs code as it is loaded, such as a pickle."""
_COMPRESSED = "gz bz2 xz zst"
"""Suffixes that may follow."""


def find_kind(path: str) -> Kind | None:
    """Return why a file may run without being opened, by its relative path; None if nothing says
    that it may. Takes time in proportion to the path.
    """
    parts = [_fold(part) for part in path.split("/")]
    for kind, folders, pattern in _TABLE:
        if pattern.fullmatch(parts[-1]) or any(map(folders.fullmatch, parts[:-1])):
            return kind
    if not parts[-1].endswith(".py"):
        return None
    is_package = parts[-1] in ("__init__.py", "__main__.py")
    for module in parts[-2:-1] if is_package else [parts[-1].removesuffix(".py")]:
        if module in sys.stdlib_module_names:
            return MODULE
        if PACKAGES.fullmatch(module):
            return PACKAGE
    return None


def is_data(path: str) -> bool:
    """Return whether a file may be written to a person's folder although nobody looks: by its name
    it is data, and no part of its path means anything to a shell or a program that is given it.

    A list of what may run is not enough then: a notebook, or a module with any name that the next
    step of a pipeline looks for, is in none.
    """
    parts = path.split("/")
    suffixes = parts[-1].casefold().split(".")[1:]
    if suffixes[-1:] and suffixes[-1] in _COMPRESSED.split():
        suffixes.pop()
    is_named = all(map(_PLAIN.fullmatch, parts)) and suffixes[-1:]
    return bool(is_named) and suffixes[-1] in _DATA.split() and find_kind(path) is None


def _fold(name: str) -> str:
    """Return a name as a file system of macOS or Windows, or git, may take it."""
    text = name.casefold()
    if not (text.isascii() and text.isprintable()):
        text = unicodedata.normalize("NFKC", name).casefold()
        text = unicodedata.normalize("NFKC", text).casefold()
        text = "".join(char for char in text if unicodedata.category(char) not in _HIDDEN)
    return text.partition(":")[0].rstrip(". ") or name


def _compile(kind: Kind) -> tuple[Kind, re.Pattern[str], re.Pattern[str]]:
    names = kind.names.split()
    files = [name for name in names if not name.endswith("/")]
    return kind, _join([name[:-1] for name in names if name.endswith("/")]), _join(files)


def _join(patterns: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)")


_TABLE = tuple(map(_compile, KINDS))
