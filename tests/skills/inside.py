"""Functions that run code and the examples of skills in a kernel's sandbox."""

from __future__ import annotations

import re

from jupyter_client import BlockingKernelClient

from ..jupyter.helpers import execute
from ..world import PROJECT

SKILLS = PROJECT / "skills"


def run(client: BlockingKernelClient, code: str) -> str:
    """Run ``code`` in the sandbox and return what it printed; fail with its error."""
    answer = execute(client, code)
    assert answer.status == "ok", (answer.reply["content"], answer.text)
    return answer.text


def shell(client: BlockingKernelClient, script: str) -> str:
    """Run a shell script in the sandbox and return what it printed."""
    return run(
        client,
        f"""
import subprocess
done = subprocess.run(["bash", "-euc", {script!r}], capture_output=True, text=True)
print(done.stdout)
assert done.returncode == 0, done.stdout + done.stderr
""",
    )


def follow(client: BlockingKernelClient, skill: str) -> list[str]:
    """Run all examples of a SKILL.md in order, and return what each printed."""
    text = (SKILLS / skill / "SKILL.md").read_text()
    examples = re.findall(r"^```(python|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert examples
    return [(shell if kind == "sh" else run)(client, code) for kind, code in examples]
