"""Pictures from a rule and a seed, as SVG: the same seed gives the same file.

    from art import flow, sheet
    flow(seed=7).save("/mnt/user-data/outputs/flow-7.svg")
    sheet(flow, range(9)).save("/mnt/user-data/outputs/flows.svg")      # nine seeds side by side

As a program: python art.py flow|packing|tiles|branches SEED OUT.svg

Needs nothing but Python's standard library.
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Callable, Iterable, Sequence

SIZE = 600
PALETTES = (
    ("#f4efe6", "#1c1a17", "#c8401f", "#e0a526", "#2f5d62"),
    ("#0f1420", "#f2ede4", "#ff7a4d", "#5ec2b7", "#6c7fd8"),
    ("#f3f2e3", "#233d2c", "#5a8f3c", "#d9a441", "#b3541e"),
    ("#ffffff", "#111111", "#d62828", "#111111", "#8d99ae"),
)
"""A ground, and colours that go together on it."""


class Picture:
    """A square with shapes. Shown in a notebook when it is the last value of a cell."""

    def __init__(self, ground: str, size: float = SIZE) -> None:
        self.size = size
        self.shapes = [f'<rect width="{size:g}" height="{size:g}" fill="{ground}"/>']

    def circle(self, x: float, y: float, radius: float, fill: str) -> None:
        self.shapes.append(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:.2f}" fill="{fill}"/>')

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.shapes.append(
            f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="{width:.2f}"'
            ' stroke-linecap="round" stroke-linejoin="round"/>'
        )

    def path(self, d: str, fill: str) -> None:
        self.shapes.append(f'<path d="{d}" fill="{fill}"/>')

    def svg(self) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.size:g} {self.size:g}"'
        return "\n".join([f'{head} width="{self.size:g}">', *self.shapes, "</svg>\n"])

    def _repr_svg_(self) -> str:
        return self.svg()

    def save(self, path: str | Path) -> Path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(self.svg(), encoding="utf-8")
        return Path(path)


class Noise:
    """A smooth landscape: values from -1 to 1 at every place, hills about 1 wide."""

    def __init__(self, rng: random.Random) -> None:
        self._corners = [rng.uniform(-1, 1) for _ in range(256)]
        self._order = rng.sample(range(256), 256)

    def __call__(self, x: float, y: float) -> float:
        left, top = math.floor(x), math.floor(y)
        across, down = _ease(x - left), _ease(y - top)
        upper = _mix(self._corner(left, top), self._corner(left + 1, top), across)
        lower = _mix(self._corner(left, top + 1), self._corner(left + 1, top + 1), across)
        return _mix(upper, lower, down)

    def _corner(self, x: int, y: int) -> float:
        return self._corners[(self._order[x % 256] + self._order[(y + 57) % 256]) % 256]


def _ease(t: float) -> float:
    return t * t * (3 - 2 * t)


def _mix(a: float, b: float, t: float) -> float:
    return a + (b - a) * t


def flow(seed: int, lines: int = 700, turn: float = 1.6, scale: float = 190) -> Picture:
    """Lines that follow a landscape's slopes. ``turn`` curls them, ``scale`` calms them."""
    rng = random.Random(seed)
    noise = Noise(rng)
    ground, *colours = rng.choice(PALETTES)
    picture = Picture(ground)
    for _ in range(lines):
        x, y = rng.uniform(0, SIZE), rng.uniform(0, SIZE)
        # Colours follow the place, and not chance alone: there are regions, and exceptions.
        region = int((noise(x / 260 + 9, y / 260) + 1) / 2 * len(colours)) % len(colours)
        colour = rng.choice(colours) if rng.random() < 0.08 else colours[region]
        points = []
        for _ in range(rng.randint(12, 70)):
            points.append((x, y))
            angle = noise(x / scale, y / scale) * math.pi * turn
            x, y = x + 5 * math.cos(angle), y + 5 * math.sin(angle)
            if not (20 < x < SIZE - 20 and 20 < y < SIZE - 20):
                break
        if len(points) > 6:
            picture.line(points, colour, rng.choice((0.6, 1.0, 1.0, 2.4)))
    return picture


def packing(seed: int, attempts: int = 6000, largest: float = 90) -> Picture:
    """Circles that touch no other: each is as large as the room allows."""
    rng = random.Random(seed)
    ground, *colours = rng.choice(PALETTES)
    picture, placed = Picture(ground), []
    for _ in range(attempts):
        x, y = rng.uniform(20, SIZE - 20), rng.uniform(20, SIZE - 20)
        room = min([x - 20, y - 20, SIZE - 20 - x, SIZE - 20 - y])
        for other_x, other_y, other in placed:
            room = min(room, math.hypot(x - other_x, y - other_y) - other - 2)
            if room < 2:
                break
        else:
            radius = min(room, largest)
            placed.append((x, y, radius))
            picture.circle(x, y, radius, rng.choice(colours))
            if radius > 14 and rng.random() < 0.5:
                picture.circle(x, y, radius * rng.uniform(0.3, 0.7), ground)
    return picture


def tiles(seed: int, count: int = 12) -> Picture:
    """A square grid of quarter circles, turned by chance: they join to ways and islands."""
    rng = random.Random(seed)
    ground, *colours = rng.choice(PALETTES)
    picture, side = Picture(ground), (SIZE - 40) / count
    for i in range(count):
        for j in range(count):
            x, y = 20 + j * side, 20 + i * side
            corners = [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]
            colour = colours[0] if rng.random() < 0.85 else rng.choice(colours[1:])
            first = rng.randrange(4)
            for corner in (first, (first + 2) % 4) if rng.random() < 0.7 else (first,):
                (a, b), (c, d), (e, f) = (corners[(corner + n) % 4] for n in (0, 1, 3))
                arc = f"A {side:.2f} {side:.2f} 0 0 1 {e:.2f} {f:.2f}"
                if rng.random() < 0.5:  # half as large, and so it meets the middle of a side
                    c, d, e, f = (a + c) / 2, (b + d) / 2, (a + e) / 2, (b + f) / 2
                    arc = f"A {side / 2:.2f} {side / 2:.2f} 0 0 1 {e:.2f} {f:.2f}"
                picture.path(f"M {a:.2f} {b:.2f} L {c:.2f} {d:.2f} {arc} Z", colour)
    return picture


def branches(seed: int, depth: int = 9) -> Picture:
    """A plant: each twig ends in two or three shorter ones."""
    rng = random.Random(seed)
    ground, ink, *leaves = rng.choice(PALETTES)
    picture = Picture(ground)
    spread, lean = rng.uniform(0.3, 0.6), rng.uniform(-0.12, 0.12)

    def grow(x: float, y: float, angle: float, length: float, left: int) -> None:
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        picture.line([(x, y), end], ink, 0.5 + left**1.7 / 5)
        if left == 0:
            picture.circle(*end, rng.uniform(1.5, 5), rng.choice(leaves))
            return
        for side in (-1, 1) if rng.random() < 0.9 else (-1, 0, 1):
            turned = angle + side * spread * rng.uniform(0.6, 1.3) + lean
            grow(*end, turned, length * rng.uniform(0.66, 0.86), left - 1)

    grow(SIZE / 2, SIZE - 30, -math.pi / 2, SIZE / 5.5, depth)
    return picture


RULES = {"flow": flow, "packing": packing, "tiles": tiles, "branches": branches}


def sheet(rule: Callable[[int], Picture], seeds: Iterable[int], columns: int = 3) -> Picture:
    """The pictures of several seeds side by side, to choose from; each has its seed below."""
    whole = Picture("#ffffff")
    side = SIZE / columns
    for i, seed in enumerate(seeds):
        x, y = i % columns * side, i // columns * side
        scale = (side - 24) / SIZE
        inner = "\n".join(rule(seed).shapes)
        place = f"translate({x + 12:.2f} {y + 6:.2f}) scale({scale:.4f})"
        name = f'<text x="{x + 12:.2f}" y="{y + side - 5:.2f}" font-size="10">{seed}</text>'
        # What sticks out of one picture must not lie over the next.
        clip = f'<clipPath id="c{i}"><rect width="{SIZE}" height="{SIZE}"/></clipPath>'
        whole.shapes += [clip, f'<g transform="{place}" clip-path="url(#c{i})">{inner}</g>', name]
    return whole


def main(arguments: list[str]) -> int:
    if len(arguments) != 3 or arguments[0] not in RULES or not arguments[1].isdigit():
        print(__doc__, file=sys.stderr)
        return 2
    print(RULES[arguments[0]](int(arguments[1])).save(arguments[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
