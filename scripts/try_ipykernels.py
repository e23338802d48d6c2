"""Test which releases of ipykernel speak frames: ``scripts/try_ipykernels.py [RELEASE@PYTHON …]``.

For each release it makes an environment, and runs kernel tests with kernels of that environment;
the tests themselves run in this one. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
VERSIONS = ("6.29.5", "6.30.1", "6.31.0", "7.0.1", "7.1.0", "7.2.0", "7.3.0", "7.4.0")
OTHER_PYTHONS = ("6.29.5@3.9", "6.31.0@3.9", "7.4.0@3.10", "7.4.0@3.12", "7.4.0@3.13")
TESTS = (
    *("tests/jupyter/test_conformance.py::TestDirect", "tests/jupyter/test_messages.py"),
    *("tests/jupyter/test_interrupt.py", "tests/jupyter/test_output.py"),
    *("tests/jupyter/test_debugger.py", "tests/jupyter/test_rough_code.py"),
)
QUICK = ("tests/jupyter/test_conformance.py::TestDirect", "tests/jupyter/test_interrupt.py")
CHOSEN = ("-k", "not relay and not docker", "--maxfail=3", "--timeout=90")
RELAYED = r"assert 'True\n' == 'False\n'"
"""The failure of ``assert_way`` for a kernel that listens on ZMQ."""
SUMMARY = re.compile(r"\d+ (passed|failed|error)")


def find_python(version: str) -> str | None:
    """Return an interpreter of ``version``, such as "3.9"; this one if it matches."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(found[-1]) if found else shutil.which(f"python{version}")


def make_environment(folder: Path, python: str, ipykernel: str) -> str:
    """Make an environment with ``ipykernel``; return its interpreter.

    :raises CalledProcessError: when pip cannot install that release
    """
    subprocess.run([python, "-m", "venv", folder], check=True)
    made = str(folder / "bin" / "python")
    pip = [made, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"ipykernel=={ipykernel}", "ipywidgets"], check=True)
    return made


def try_one(ipykernel: str, version: str, tests: tuple[str, ...]) -> tuple[str, str]:
    """Return the mode of kernels of that release, "direct" or "relay", and the tests' summary."""
    python = find_python(version)
    if python is None:
        return "?", f"no Python {version} here"
    with tempfile.TemporaryDirectory(prefix="gk-ipykernel-", dir="/tmp") as folder:
        try:
            made = make_environment(Path(folder, "env"), python, ipykernel)
        except subprocess.CalledProcessError:
            return "?", "cannot be installed"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *CHOSEN, *tests],
            cwd=PROJECT,
            env={**os.environ, "GK_TEST_PYTHON": made},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    lines = done.stdout.splitlines()
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            print(f"    {line[:200]}", flush=True)
    summary = next((line for line in reversed(lines) if SUMMARY.search(line)), "no result")
    by_relay = any(RELAYED in line for line in lines)
    return "relay" if by_relay else "direct", re.sub(r" in .*", "", summary.strip("= "))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    parser.add_argument("which", nargs="*", metavar="RELEASE@PYTHON")
    parser.add_argument("--quick", action="store_true", help="only conformance and interrupts")
    arguments = parser.parse_args()
    which = arguments.which or [*(f"{v}@{own}" for v in VERSIONS), *OTHER_PYTHONS]
    print("| ipykernel | Python | mode | tests |\n|---|---|---|---|", flush=True)
    failed = False
    for name in which:
        ipykernel, _, version = name.partition("@")
        way, result = try_one(ipykernel, version or own, QUICK if arguments.quick else TESTS)
        failed |= way != "direct" or "failed" in result or "error" in result
        print(f"| {ipykernel} | {version or own} | {way} | {result} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
