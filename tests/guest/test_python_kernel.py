"""Forked kernels: what a cell can see of the guest, and of how it was started."""

from __future__ import annotations

from gvisor_kernel.guest.python_kernel import MODULES
from gvisor_kernel.spec.layout import GUEST

from ..jupyter.helpers import execute, running_kernel

BLOCKS = """
import ctypes, os, subprocess, sys
CODE = '''
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
block = libc.malloc(1 << 20)
with open("/proc/self/maps") as file:
    heap = next(line for line in file if "[heap]" in line).split()[0]
begin, end = (int(word, 16) for word in heap.split("-"))
print(begin <= block < end)
'''
exec(CODE, {})
print(subprocess.check_output([sys.executable, "-c", CODE], text=True).strip())
print([name for name in os.environ if "MALLOC" in name])
"""
"""Prints whether a block of 1 MiB is in the heap: of the kernel, of a program that it starts."""

SHELL = """
import os
forks = []
os.register_at_fork(before=lambda: forks.append(1))
!tty; stty size; exit 3
print(_exit_code, len(forks))
os.environ["GVISOR_KERNEL_PLAIN"] = "subprocess"
!true
print(len(forks))
"""
"""Prints the terminal of a command, and how often the kernel was forked for that one and another.
"""

FONTS = """
import os
from matplotlib.font_manager import _get_font, findfont, get_font
for plain in ("fonts", ""):
    os.environ["GVISOR_KERNEL_PLAIN"] = plain
    _get_font.cache_clear()
    font = get_font(findfont("DejaVu Sans"))
    font.set_text("abc")
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    print(any(os.readlink(link).endswith(".ttf") for link in links if os.path.islink(link)))
    del font
"""
"""Prints whether a font is an open file: with the variable that leaves it as it is, and without."""


def test_forked_kernel_looks_like_its_own_interpreter() -> None:
    """The code of a cell can see neither the guest's own modules nor how it was started."""
    with running_kernel() as (_, client):
        answer = execute(
            client, "open('/proc/1/cmdline').read() == open('/proc/self/cmdline').read()"
        )
        assert answer.result == "True"
        assert execute(client, "__name__").result == "'__main__'"
        code = f"import sys; [p for p in sys.path if f'{{p}}/'.startswith('{GUEST}/')]"
        answer = execute(client, code)
        assert answer.result == f"['{MODULES}']"  # what code in a sandbox may import
        assert execute(client, "sys.path[-1]").result == f"'{MODULES}'"  # others' modules win
        assert execute(client, "sys.flags.isolated, sys.argv[0].split('/')[-1]").result == (
            "(0, 'ipykernel_launcher.py')"
        )
        assert execute(client, "import os; os.environ['HOME'], os.getppid()").result == (
            "('/home/user', 1)"
        )
        assert execute(client, BLOCKS).text.split("\n")[:3] == ["True", "False", "[]"]
        assert execute(client, SHELL).text.split() == ["/dev/pts/0", "24", "80", "3", "0", "1"]
        assert execute(client, FONTS).text == "True\nFalse\n"


def test_other_command_or_early_variable_starts_a_new_interpreter() -> None:
    """Such a kernel has room on its stack, too."""
    for settings in ({"kernel_mode": "relay"}, {"environment": ["PYTHONHASHSEED"]}):
        start = {"env": {"PYTHONHASHSEED": "7"}}
        with running_kernel(settings=settings, start=start) as (_, client):
            answer = execute(client, "open('/proc/self/cmdline').read().split('\\0')[2]")
            assert answer.result == "'/opt/gvisor-kernel/gvisor_kernel/guest/python_kernel.py'"
            assert execute(client, BLOCKS).text.split("\n")[0] == "True"
            assert execute(client, SHELL).text.split()[3:] == ["3", "0", "1"]
