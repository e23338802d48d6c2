"""Fuzz link and streams for a given time with nothing but Python; see README.md in this directory.

Inputs are changed inputs of the corpus: bytes, frames, lengths, or halves of two inputs. An input
that has a new outcome (events, error and state of the end) is changed further. A finding is written
to fuzz/found and ends the run with status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import secrets
import signal
import sys
import time
import traceback
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]

from fuzz_link import TARGETS  # noqa: E402

from gvisor_kernel.link.frames import HEADER, FrameType  # noqa: E402

FOUND = FOLDER / "found"
MAX_LENGTH = 4096
"""Bytes of a changed input."""
MAX_KEPT = 700
"""Bytes of an input that --keep writes: a person may have to read it."""
MAX_SECONDS = 20
"""Seconds of CPU after which an input is a finding. An input takes milliseconds, and waits for
nothing; time that a busy machine gives to others does not count."""
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32759, 32760, 32761, 65535, 2**31, 2**32 - 1)


def random_frame(rng: random.Random) -> bytes:
    payload = rng.randbytes(rng.choice((0, 1, 4, 5, 8, 8, 9, 40)))
    length = len(payload) if rng.random() < 0.9 else rng.choice(NUMBERS)
    kind = rng.choice([*FrameType, rng.randrange(256)])
    return HEADER.pack(kind, rng.randrange(7), rng.choice((0, 0, 1, 255)), 0, length) + payload


def cut_frames(stream: bytes) -> list[bytes]:
    """Split a stream into frames. The last piece is the rest, empty or incomplete."""
    frames = []
    while len(stream) >= HEADER.size:
        end = HEADER.size + HEADER.unpack_from(stream)[-1]
        frames.append(stream[:end])
        stream = stream[end:]
    return [*frames, stream]


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return ``data`` with one to four changes. Some of them keep its frames whole."""
    first, stream = data[0], data[1:]
    for _ in range(rng.randint(1, 4)):
        change = rng.randrange(9)
        at = rng.randrange(len(stream) + 1)
        end = min(len(stream), at + rng.randint(0, 24))
        if change == 0:
            first = rng.randrange(256)
        elif change == 1:
            stream = stream[:at] + rng.randbytes(end - at) + stream[end:]
        elif change == 2:
            stream = stream[:at] + stream[end:]
        elif change == 3:
            stream = stream[:end] + stream[at:]
        elif change == 4:
            number = rng.choice(NUMBERS).to_bytes(4, "big")[-rng.choice((1, 2, 4)) :]
            stream = stream[:at] + number + stream[at + len(number) :]
        elif change == 5:
            stream = stream[:at] + other[rng.randrange(len(other)) :]
        else:
            frames = cut_frames(stream)
            place = rng.randrange(len(frames))
            if change == 6:
                frames.insert(place, random_frame(rng))
            elif change == 7:
                frames.insert(place, rng.choice(cut_frames(other[1:])))
            else:
                frames.pop(place)
            stream = b"".join(frames)
    return bytes([first]) + stream[:MAX_LENGTH]


def fuzz(name: str, seconds: float, seed: int, keep: Path | None) -> int:
    """Fuzz one target. Return the exit status."""
    check, outcome = TARGETS[name]
    rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
    pool = [path.read_bytes() for path in sorted((FOLDER / "corpus" / name).iterdir())]
    known = {outcome(data)[0] for data in pool}
    covered = set().union(*(outcome(data)[1] for data in pool))
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        data = mutate(rng.choice(pool), rng.choice(pool), rng)
        count += 1
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
        try:
            check(data)
            new, found_parts = outcome(data)
        except Exception:
            traceback.print_exc()
            path = write(FOUND, data)
            print(
                f"Found after {count} inputs, with --target {name} --seed {seed}: {path}",
                file=sys.stderr,
            )
            return 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if new not in known:
            known.add(new)
            pool.append(data)
        if keep is not None and len(data) < MAX_KEPT and not found_parts <= covered:
            covered |= found_parts
            write(keep, data)
    print(f"Fuzzed {name} for {seconds:g} s: {count} inputs, {len(known)} outcomes, no finding.")
    return 0


def write(folder: Path, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return path


def raise_timeout(signum: int, frame: object) -> None:
    raise AssertionError(f"an input takes longer than {MAX_SECONDS} s of CPU")


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the link with changes of its corpora.")
    parser.add_argument("--seconds", type=float, default=120, help="how long (default: 120)")
    parser.add_argument("--target", choices=TARGETS, help="only this one (default: half of each)")
    parser.add_argument("--seed", type=int, help="repeat a run (default: a random seed)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="write new inputs to this directory"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGPROF, raise_timeout)
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    names = [arguments.target] if arguments.target else list(TARGETS)
    return max(fuzz(name, arguments.seconds / len(names), seed, arguments.keep) for name in names)


if __name__ == "__main__":
    sys.exit(main())
