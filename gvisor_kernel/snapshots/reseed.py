"""Code that gives a restored kernel new random numbers, by the language that the kernel reports.

A Python kernel that speaks the link's frames does this by itself (``guest/resume.py``). For
languages that are not listed here, random state of before the snapshot is the same in all restored
kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gvisor_kernel.spec.layout import GUEST


@dataclass(frozen=True)
class Renewal:
    """``code`` must leave nothing behind that a cell could see. ``always``: run it also in a
    kernel of the ipykernel family, whose cells run in another process."""

    code: str = ""
    always: bool = False


RENEWALS = {
    "python": Renewal(
        f"""exec('''
import sys
sys.path.insert(0, "{GUEST}")
try:
    from gvisor_kernel.guest.resume import renew
finally:
    sys.path.remove("{GUEST}")
renew()
''', {{}})"""
    ),
    "bash": Renewal(
        "RANDOM=${SRANDOM:-$(od -An -N4 -tu4 /dev/urandom)}; history -d -1 2>/dev/null; true",
        always=True,
    ),
    # V8 seeds Math.random once and accepts no other seed, so replace the function.
    "typescript": Renewal(
        """{
  const drawn = new Uint32Array(1024);
  let next = drawn.length;
  const random = () => {
    if (next === drawn.length) {
      crypto.getRandomValues(drawn);
      next = 0;
    }
    return ((drawn[next++] >>> 5) * 2 ** 26 + (drawn[next++] >>> 6)) / 2 ** 53;
  };
  Object.defineProperty(Math, "random", { value: random, writable: true, configurable: true });
}""",
        always=True,
    ),
}


def find_renewal(facts: Mapping[str, Any]) -> Renewal:
    """Return the renewal for a snapshot, by the facts in its ``Meta``."""
    return RENEWALS.get(str(facts.get("language")), Renewal())
