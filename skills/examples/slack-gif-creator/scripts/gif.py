"""Animated GIFs within Slack's limits, with Pillow.

    from gif import Animation
    animation = Animation("emoji", seconds=1)
    animation.draw(lambda pen, t: pen.ellipse((t * 64, 32, t * 64 + 64, 96), fill="#0072b2"))
    animation.save("/mnt/user-data/outputs/ball.gif")

As a program:

    python gif.py check FILE.gif emoji|message             what Slack would refuse, or show badly
    python gif.py fit PICTURE OUT.gif emoji|message        a GIF or picture, made to fit
    python gif.py move MOTION PICTURE OUT.gif emoji|message    bounce, pulse, shake or spin
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

try:
    from PIL import Image, ImageDraw, ImageFont, ImageSequence, UnidentifiedImageError
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package pillow is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None


@dataclass(frozen=True)
class Limits:
    """What one kind of GIF may have. reference/limits.md says where each number is from."""

    width: int
    height: int
    size: int
    """Bytes, and one less is the most."""
    frames: int
    colours: int
    """Beside transparency: a GIF's palette has 256 places."""
    square: bool


KINDS: dict[str, Limits] = {
    "emoji": Limits(128, 128, 128 * 1000, 50, 255, square=True),
    "message": Limits(480, 480, 2 * 1000 * 1000, 120, 255, square=False),
}
RATES = (25, 20, 10, 5)
"""Frames in a second: a GIF counts hundredths of a second, and browsers slow down what is faster
than 50."""
FINER = 4
"""Everything is drawn so many times larger, and made smaller then: its edges are smooth."""
COLOURS = (255, 128, 64, 32, 16, 8)
MAX_PIXELS = 40_000_000
"""Of a picture that is read."""

Pen = Any
Draw = Callable[[Pen, float], object]


class Animation:
    """Frames of one size, drawn one after the other or by a function of time."""

    def __init__(
        self,
        kind: str = "emoji",
        seconds: float = 1.0,
        rate: int = 20,
        size: tuple[int, int] | None = None,
        background: str | None = None,
    ) -> None:
        """``background``: a colour; None is transparent. ``size``: smaller than the kind's.

        Raises ValueError for more frames, or larger ones, than the kind may have.
        """
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no kind: there are {', '.join(KINDS)}")
        self.kind, self.limits = kind, KINDS[kind]
        self.size = size or (self.limits.width, self.limits.height)
        if rate not in RATES:
            raise ValueError(f"{rate} frames a second: take one of {', '.join(map(str, RATES))}")
        self.rate = rate
        self.count = max(1, round(seconds * rate))
        self.background = background
        self.frames: list[Image.Image] = []
        if self.count > self.limits.frames:
            raise ValueError(
                f"{self.count} frames: {kind} may have {self.limits.frames}. "
                f"Make it shorter than {self.limits.frames / rate:g} s, or draw fewer in a second"
            )
        if self.size[0] > self.limits.width or self.size[1] > self.limits.height:
            most = f"{self.limits.width} x {self.limits.height}"
            raise ValueError(f"{self.size[0]} x {self.size[1]} pixels: {kind} may have {most}")

    def draw(self, draw: Draw) -> Animation:
        """Call ``draw(pen, t)`` for each frame; ``t`` goes from 0 to just below 1.

        ``pen`` draws as Pillow's ImageDraw does, in the pixels of the result.
        """
        for n in range(self.count):
            picture = self._blank()
            draw(_Pen(picture), n / self.count)
            self.frames.append(picture.resize(self.size, Image.Resampling.LANCZOS))
        return self

    def add(self, picture: Image.Image) -> Animation:
        """One frame more: a picture, made to fit without being stretched."""
        whole = self._blank(1)
        inner = picture.convert("RGBA")
        inner.thumbnail(self.size, Image.Resampling.LANCZOS)
        if inner.width < self.size[0] and inner.height < self.size[1]:
            factor = min(self.size[0] / inner.width, self.size[1] / inner.height)
            larger = (max(1, round(inner.width * factor)), max(1, round(inner.height * factor)))
            inner = picture.convert("RGBA").resize(larger, Image.Resampling.LANCZOS)
        place = ((self.size[0] - inner.width) // 2, (self.size[1] - inner.height) // 2)
        whole.alpha_composite(inner, place)
        self.frames.append(whole)
        return self

    def save(self, path: str | Path, delays: Sequence[int] | None = None) -> dict[str, Any]:
        """Write the GIF with as many colours as fit, and return what it has.

        ``delays``: hundredths of a second of each frame. Raises ValueError if it fits with no
        number of colours.
        """
        if not self.frames:
            raise ValueError("there are no frames yet: draw or add some")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        times = list(delays or [100 // self.rate] * len(self.frames))
        for colours in COLOURS:
            _write(path, self.frames, colours, times)
            if os.path.getsize(path) < self.limits.size:
                return inspect(path)
        size = os.path.getsize(path)
        path.unlink()
        raise ValueError(
            f"{size} bytes with {colours} colours: {self.kind} may have less than "
            f"{self.limits.size}. Make it shorter, with fewer frames or less detail"
        )

    def _blank(self, finer: int = FINER) -> Image.Image:
        size = (self.size[0] * finer, self.size[1] * finer)
        return Image.new("RGBA", size, self.background or (0, 0, 0, 0))


class _Pen:
    """Pillow's ImageDraw, whose coordinates and widths are those of the result."""

    def __init__(self, picture: Image.Image) -> None:
        self._draw = ImageDraw.Draw(picture)
        self.picture = picture

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A shape: ellipse, rectangle, rounded_rectangle, polygon, line, arc, pieslice, chord."""
        method = getattr(self._draw, name)

        def call(points: Any, *rest: Any, **options: Any) -> Any:
            for key in ("width", "radius"):
                if options.get(key):
                    options[key] = round(options[key] * FINER)
            return method(_finer(points), *rest, **options)

        return call

    def text(self, place: tuple[float, float], text: str, size: float, **options: Any) -> None:
        """Text of ``size`` pixels around ``place``, which is its middle unless anchor says else."""
        font = _font(size * FINER)
        self._draw.text(_finer(place), text, font=font, **{"anchor": "mm", **options})


def _finer(points: Any) -> Any:
    return [_finer(p) if isinstance(p, (tuple, list)) else p * FINER for p in points]


def _font(size: float) -> Any:
    for name in ("DejaVuSans-Bold.ttf", "LiberationSans-Bold.ttf", "NotoSans-Bold.ttf"):
        try:
            return ImageFont.truetype(name, round(size))
        except OSError:
            continue
    return ImageFont.load_default(round(size))


def _write(path: Path, frames: Sequence[Image.Image], colours: int, delays: list[int]) -> None:
    """One palette for all frames: they are smaller then, and colours do not flicker."""
    width, height = frames[0].size
    sheet = Image.new("RGB", (width, height * len(frames)))
    masks = []
    for n, frame in enumerate(frames):
        sheet.paste(frame.convert("RGB"), (0, n * height))
        masks.append(frame.getchannel("A").point(lambda alpha: 255 if alpha < 128 else 0))
    palette = sheet.quantize(colours, method=Image.Quantize.MEDIANCUT)
    flat = [
        frame.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames
    ]
    options: dict[str, Any] = {}
    if any(mask.getbbox() for mask in masks):
        used = max(picture.getextrema()[1] for picture in flat)
        for picture, mask in zip(flat, masks):
            picture.paste(used + 1, mask=mask)
        options = {"transparency": used + 1, "disposal": 2}
    flat[0].save(
        path, save_all=True, append_images=flat[1:], duration=[10 * d for d in delays], loop=0,
        optimize=False, **options,
    )  # fmt: skip


def inspect(path: str | Path) -> dict[str, Any]:
    """What a GIF has: pixels, bytes, frames, colours, seconds, whether it goes round for ever."""
    with Image.open(path) as picture:
        if picture.format != "GIF":
            raise ValueError(f"{path} is no GIF, but {picture.format}")
        loop = picture.info.get("loop")
        colours, seconds, transparent = set(), 0.0, False
        for frame in ImageSequence.Iterator(picture):
            seconds += frame.info.get("duration", 0) / 1000
            for _, colour in frame.convert("RGBA").getcolors(frame.width * frame.height) or []:
                transparent |= colour[3] == 0
                if colour[3]:
                    colours.add(colour[:3])
        return {
            "width": picture.width, "height": picture.height, "bytes": os.path.getsize(path),
            "frames": getattr(picture, "n_frames", 1), "colours": len(colours),
            "seconds": round(seconds, 2), "loops": loop == 0, "transparent": transparent,
        }  # fmt: skip


def check(path: str | Path, kind: str) -> list[str]:
    """What is wrong with a GIF for Slack, in one sentence each."""
    limits, has = KINDS[kind], inspect(path)
    found = []
    if has["width"] > limits.width or has["height"] > limits.height:
        most = f"{limits.width} x {limits.height}"
        found.append(f"It has {has['width']} x {has['height']} pixels: {most} at most.")
    if limits.square and has["width"] != has["height"]:
        found.append("It is not square.")
    if has["bytes"] >= limits.size:
        found.append(f"It has {has['bytes']} bytes: less than {limits.size}.")
    if has["frames"] > limits.frames:
        found.append(f"It has {has['frames']} frames: {limits.frames} at most.")
    if has["colours"] > limits.colours + 1:
        found.append(f"It has {has['colours']} colours: {limits.colours + 1} at most.")
    if has["frames"] > 1 and not has["loops"]:
        found.append("It stops after some rounds.")
    if has["frames"] > 1 and has["seconds"] / has["frames"] < 0.02:
        found.append("Its frames are shorter than 0.02 s: browsers show it slowly.")
    return found


def fit(source: str | Path, path: str | Path, kind: str) -> dict[str, Any]:
    """A GIF or picture as one that fits: smaller, with fewer frames and colours where needed."""
    limits = KINDS[kind]
    failure = ValueError("")
    for part, scale in ((1, 1.0), (2, 0.8), (4, 0.6), (6, 0.4)):
        try:
            return _refit(source, path, kind, max(1, limits.frames // part), scale)
        except ValueError as error:
            failure = error
    raise failure


def _refit(
    source: str | Path, path: str | Path, kind: str, most: int, scale: float
) -> dict[str, Any]:
    """``fit`` with at most so many frames, and so large a part of the pixels' width."""
    limits = KINDS[kind]
    with Image.open(source) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{source} has more than {MAX_PIXELS} pixels")
        step = math.ceil(getattr(picture, "n_frames", 1) / most)
        size = (limits.width, limits.height)
        if not limits.square:
            factor = min(size[0] / picture.width, size[1] / picture.height, 1) * scale
            size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        animation, delays = Animation(kind, 1 / 20, size=size), []
        for n, frame in enumerate(ImageSequence.Iterator(picture)):
            delay = max(2, round(frame.info.get("duration", 100) / 10))
            if n % step == 0:
                animation.add(frame)
                delays.append(delay)
            else:
                delays[-1] += delay
    return animation.save(path, delays)


def move(motion: str, source: str | Path, path: str | Path, kind: str) -> dict[str, Any]:
    """A picture that moves: ``bounce``, ``pulse``, ``shake`` or ``spin``, in one second."""
    if motion not in MOTIONS:
        raise ValueError(f"{motion!r} is no motion: there are {', '.join(MOTIONS)}")
    animation = Animation(kind, 1.0)
    width, height = animation.size
    with Image.open(source) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{source} has more than {MAX_PIXELS} pixels")
        still = Animation(kind, size=(width * 3 // 4, height * 3 // 4)).add(picture).frames[0]
    for n in range(animation.count):
        x, y, factor, angle = MOTIONS[motion](n / animation.count)
        size = (max(1, round(still.width * factor)), max(1, round(still.height * factor)))
        part = still.resize(size, Image.Resampling.LANCZOS)
        part = part.rotate(angle, Image.Resampling.BICUBIC)
        frame = Image.new("RGBA", animation.size)
        left, top = (width - part.width) / 2 + x * width, (height - part.height) / 2 + y * height
        frame.paste(part, (round(left), round(top)), part)
        animation.frames.append(frame)
    return animation.save(path)


MOTIONS: dict[str, Callable[[float], tuple[float, float, float, float]]] = {
    "bounce": lambda t: (0, 0.12 - 0.24 * abs(math.sin(math.pi * t)), 1, 0),
    "pulse": lambda t: (0, 0, 1 + 0.25 * math.sin(2 * math.pi * t), 0),
    "shake": lambda t: (0.08 * math.sin(6 * math.pi * t), 0, 1, 4 * math.sin(6 * math.pi * t)),
    "spin": lambda t: (0, 0, 1, -360 * t),
}
"""Of a time from 0 to 1: how far to the right and down, how large, turned by how many degrees. Each
is at 1 where it was at 0, so that it goes round without a jump."""


def ease(t: float) -> float:
    """Slow, fast, slow again: how things with weight move from 0 to 1."""
    return t * t * (3 - 2 * t)


def main(arguments: list[str]) -> int:
    command, rest = (arguments or [""])[0], arguments[1:]
    try:
        if rest and rest[-1] in KINDS:
            if command == "check" and len(rest) == 2:
                found = check(rest[0], rest[1])
                print("\n".join(found) or f"Nothing was found: {inspect(rest[0])}")
                return 1 if found else 0
            if command == "fit" and len(rest) == 3:
                print(fit(*rest))
                return 0
            if command == "move" and len(rest) == 4:
                print(move(*rest))
                return 0
    except (OSError, ValueError, UnidentifiedImageError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
