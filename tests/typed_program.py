"""A program as a person writes it: mypy has nothing to say of it. It is not run."""

from __future__ import annotations

from gvisor_kernel import AsyncSandbox, Sandbox
from gvisor_kernel.kernel.noted_outputs import OutputChanges


def work() -> str:
    """Call each verb of a sandbox that its base classes have, too."""
    with Sandbox(memory="1G") as sandbox:
        sandbox.run("x = 1")
        sandbox.hibernate()
        name: str = sandbox.checkpoint()
        changes: OutputChanges = sandbox.rewind(name, undo_applied=True)
        names = [one.name for one in sandbox.checkpoints()]
        sandbox.remove_checkpoint(name)
        branches: list[Sandbox] = sandbox.branch(n=2)
        sandbox.move("local")
        sandbox.files.write("/workspace/a", "text")
        texts = [branch.run("x").text for branch in branches]
        return f"{changes.added} {names} {texts} {sandbox.is_hibernated}"


async def work_async() -> str:
    """The same, awaited."""
    async with AsyncSandbox() as sandbox:
        await sandbox.hibernate()
        name: str = await sandbox.checkpoint()
        await sandbox.rewind(name)
        branches: list[AsyncSandbox] = await sandbox.branch(n=2)
        await sandbox.move("local")
        return str((await branches[0].run("x")).text)
