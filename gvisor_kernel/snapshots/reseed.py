"""What a restored kernel runs so that it shares no random numbers with other copies of its image.

By language, as kernels call it. A Python kernel that speaks frames does all of it by itself
(``guest/resume.py``). Of other languages nothing is known: what they had seeded before the image
was taken stays the same in all its copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gvisor_kernel.spec.layout import GUEST


@dataclass(frozen=True)
class Renewal:
    """``code`` leaves nothing behind that a cell could see. ``always``: also in a kernel of the
    ipykernel family, whose process is not the one that runs its cells."""

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
    # The engine seeds its generator once, and takes no other seed.
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


def find_renewal(facts: dict[str, Any]) -> Renewal:
    """The one for an image, by what is kept of its kernel."""
    return RENEWALS.get(str(facts.get("language")), Renewal())
