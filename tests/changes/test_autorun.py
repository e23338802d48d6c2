"""Which names may run without being opened."""

from __future__ import annotations

import pytest

from gvisor_kernel.changes.autorun import find_kind

RUNNING = [
    ".git/config",
    ".git/hooks/pre-commit",
    "report/.git/config",
    ".git",
    "report/HEAD",
    ".hg/hgrc",
    ".gitmodules",
    ".husky/pre-commit",
    ".pre-commit-config.yaml",
    ".github/workflows/test.yml",
    ".gitlab-ci.yml",
    ".vscode/tasks.json",
    ".idea/workspace.xml",
    ".devcontainer/devcontainer.json",
    ".claude/settings.json",
    "AGENTS.md",
    ".envrc",
    ".env",
    ".bashrc",
    ".bash_profile",
    ".zshenv",
    ".vimrc",
    ".gdbinit",
    ".ssh/authorized_keys",
    ".config/autostart/a.desktop",
    "a.desktop",
    "conftest.py",
    "tests/conftest.py",
    "pyproject.toml",
    "setup.py",
    "tox.ini",
    "x.pth",
    "sitecustomize.py",
    "usercustomize.py",
    "__pycache__/tool.cpython-312.pyc",
    "numpy.cpython-312-x86_64-linux-gnu.so",
    "random.py",
    "json/__init__.py",
    "ipython_config.py",
    "jupyter_server_config.json",
    ".ipynb_checkpoints/a-checkpoint.ipynb",
    "Makefile",
    "GNUmakefile",
    "rules.mk",
    "justfile",
    "Taskfile.yml",
    "package.json",
    ".npmrc",
    ".yarnrc.yml",
    "vite.config.ts",
    ".Rprofile",
    ".bare/config",
    "mirror.git/config",
    "matplotlibrc",
    "numpy.py",
    "pandas/__init__.py",
    "pip/__main__.py",
    "IPython.py",
    "jupyter_client/__init__.py",
    ".jupytext.py",
    "jupytext.toml",
    "nbgrader_config.py",
    ".venv/bin/python",
    "venv/lib/python3.12/site-packages/x.py",
    "tools/site-packages/x.py",
    "bin/activate.fish",
    "postactivate",
    "renv/activate.R",
    "test_a.py",
    "a_test.py",
    ".latexmkrc",
    ".lintr",
    ".ocamlinit",
    ".iex.exs",
    "gunicorn.conf.py",
    "docs/conf.py",
    "_quarto.yml",
    "mkdocs.yml",
    "ansible.cfg",
    "compose.override.yaml",
    "Cargo.toml",
    "rust-toolchain.toml",
    ".helix/config.toml",
    ".ropeproject/config.py",
    ".opencode/agent.md",
    "opencode.json",
    "nextflow.config",
    "composer.json",
    ".rubocop.yml",
    "site_scons/site_init.py",
    ".gitpod.yml",
    "flake.nix",
    ".flaskenv",
    ".mise.local.toml",
    ".pdbrc.py",
    "test_results.txt",
    "voila.json",
    "main.tf.json",
    "x.auto.tfvars.json",
    "CMakePresets.json",
    "serverless.json",
    "dev-requirements.txt",
    "requirements/dev.txt",
    "AGENTS.override.md",
    "QWEN.md",
    "tsconfig.build.json",
    "jupyterhub.sqlite",
]
USUAL = [
    "data.csv",
    "report.md",
    "metrics.json",
    "latest.txt",
    "analysis.ipynb",
    "src/tool.py",
    "src/__init__.py",
    "json/data.csv",
    "numpy/data.csv",
    "latest.py",
    "activity.csv",
    "git/config",
    "makefiles/a.txt",
    "docs/environment.txt",
    "plot.png",
    "a/b/c.html",
]


@pytest.mark.parametrize("path", RUNNING)
def test_a_file_that_a_program_reads_by_itself_is_known(path: str) -> None:
    assert find_kind(path) is not None


@pytest.mark.parametrize("path", USUAL)
def test_a_file_that_nobody_reads_by_itself_is_a_usual_one(path: str) -> None:
    assert find_kind(path) is None


@pytest.mark.parametrize(
    "path",
    [
        ".bare/hooks/post-update",
        "mirror.GIT/config",
        ".GIT/config",
        ".Git/config",
        ".g\u200cit/config",
        "\uff0egit/config",
        ".gi\u1d57/config",
        ".git./config",
        ".git /config",
        ".git::$INDEX_ALLOCATION/config",
        "GIT~1/config",
    ],
)
def test_names_that_another_file_system_takes_for_git_need_force(path: str) -> None:
    kind = find_kind(path)
    assert kind is not None
    assert kind.needs_force


@pytest.mark.parametrize("path", ["MAKEFILE", "\uff2dakefile", "pac\u212aage.json", "ConfTest.PY"])
def test_names_are_compared_as_case_and_unicode_fold(path: str) -> None:
    assert find_kind(path) is not None
