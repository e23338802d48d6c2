"""Fuzz the link for a given time with nothing but Python; see README.md in this folder.

Inputs are those of the corpus with something changed: bytes, frames, lengths, halves of two. One
that makes an end do what none did before (its events, its error, its state) is changed further.
A finding is written to fuzz/found and ends the run with status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Hashable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]

from fuzz_link import check, judged, prepared  # noqa: E402

from gvisor_kernel.link.frames import HEADER, FrameType  # noqa: E402

CORPUS = FOLDER / "corpus" / "link"
FOUND = FOLDER / "found"
MAX_LENGTH = 4096
MAX_KEPT = 700
"""Bytes of an input that is worth keeping: a person may have to read it."""
MAX_SECONDS = 20
"""One input takes milliseconds; one that takes this long is a finding."""
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32759, 32760, 32761, 65535, 2**31, 2**32 - 1)


def outcome(data: bytes) -> tuple[Hashable, set[Hashable]]:
    """What an input does to an end, as a whole and one by one; without numbers and texts.

    The second is what the corpus has one input for each of: an error, by role, and a kind of
    event, by situation.
    """
    events, error, state = judged(prepared(data[0]), [data[1:]])
    said = re.sub(r"\d+|'.*'", "", error or "")
    kinds = frozenset(type(event).__name__ for event in events)
    single = {(data[0] & 1, said), *((data[0] & 7, state, kind) for kind in kinds)}
    return (data[0] & 7, kinds, said, state), single


def random_frame(chance: random.Random) -> bytes:
    payload = chance.randbytes(chance.choice((0, 1, 4, 5, 8, 8, 9, 40)))
    length = len(payload) if chance.random() < 0.9 else chance.choice(NUMBERS)
    kind = chance.choice([*FrameType, chance.randrange(256)])
    return (
        HEADER.pack(kind, chance.randrange(7), chance.choice((0, 0, 1, 255)), 0, length) + payload
    )


def cut_frames(stream: bytes) -> list[bytes]:
    """The frames of a stream; what is none, or half of one, is the last."""
    frames = []
    while len(stream) >= HEADER.size:
        end = HEADER.size + HEADER.unpack_from(stream)[-1]
        frames.append(stream[:end])
        stream = stream[end:]
    return [*frames, stream]


def changed(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """``data`` with one to four changes, some of which keep its frames whole."""
    first, stream = data[0], data[1:]
    for _ in range(chance.randint(1, 4)):
        way = chance.randrange(9)
        at = chance.randrange(len(stream) + 1)
        end = min(len(stream), at + chance.randint(0, 24))
        if way == 0:
            first = chance.randrange(256)
        elif way == 1:
            stream = stream[:at] + chance.randbytes(end - at) + stream[end:]
        elif way == 2:
            stream = stream[:at] + stream[end:]
        elif way == 3:
            stream = stream[:end] + stream[at:]
        elif way == 4:
            number = chance.choice(NUMBERS).to_bytes(4, "big")[-chance.choice((1, 2, 4)) :]
            stream = stream[:at] + number + stream[at + len(number) :]
        elif way == 5:
            stream = stream[:at] + other[chance.randrange(len(other)) :]
        else:
            frames = cut_frames(stream)
            place = chance.randrange(len(frames))
            if way == 6:
                frames.insert(place, random_frame(chance))
            elif way == 7:
                frames.insert(place, chance.choice(cut_frames(other[1:])))
            else:
                frames.pop(place)
            stream = b"".join(frames)
    return bytes([first]) + stream[:MAX_LENGTH]


def fuzz(seconds: float, seed: int, keep: Path | None) -> int:
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    pool = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    known = {outcome(data)[0] for data in pool}
    covered = set().union(*(outcome(data)[1] for data in pool))
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        data = changed(chance.choice(pool), chance.choice(pool), chance)
        count += 1
        signal.alarm(MAX_SECONDS)
        try:
            check(data)
            new, single = outcome(data)
        except Exception:
            traceback.print_exc()
            path = write(FOUND, data)
            print(f"Found after {count} inputs, with --seed {seed}: {path}", file=sys.stderr)
            return 1
        finally:
            signal.alarm(0)
        if new not in known:
            known.add(new)
            pool.append(data)
        if keep is not None and len(data) < MAX_KEPT and not single <= covered:
            covered |= single
            write(keep, data)
    print(f"Fuzzed the link for {seconds:g} s: {count} inputs, {len(known)} outcomes, no finding.")
    return 0


def write(folder: Path, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return path


def too_long(signum: int, frame: object) -> None:
    raise AssertionError(f"an input takes longer than {MAX_SECONDS} s")


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the link with changes of its corpus.")
    parser.add_argument("--seconds", type=float, default=120, help="how long (default: 120)")
    parser.add_argument("--seed", type=int, help="repeats a run (default: another each time)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where to put new inputs")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, too_long)
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    return fuzz(arguments.seconds, seed, arguments.keep)


if __name__ == "__main__":
    sys.exit(main())
