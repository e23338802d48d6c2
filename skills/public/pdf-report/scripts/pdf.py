"""Write PDF documents with Python's standard library alone (3.9 or newer): pages, text, pictures.

What stands on a page, and where, is report.py's matter. Text is in the fonts that every reader has
(Helvetica, Courier), which know the characters of Western European languages; ``Pdf.unknown``
collects others, which appear as a question mark.
"""

import re
import struct
import unicodedata
import zlib
from typing import Dict, List, Set, Tuple

FONTS = {"plain": "Helvetica", "bold": "Helvetica-Bold", "code": "Courier"}

# Widths of the characters 32 to 126 in thousandths of the size (Adobe's font metrics).
_PLAIN = (
    "278 278 355 556 556 889 667 191 333 333 389 584 278 333 278 278 556 556 556 556 556 556 556"
    " 556 556 556 278 278 584 584 584 556 1015 667 667 722 722 667 611 778 722 278 500 667 556 833"
    " 722 778 667 778 722 667 611 722 667 944 667 667 611 278 278 278 469 556 333 556 556 500 556"
    " 556 278 556 556 222 222 500 222 833 556 556 556 556 333 500 278 556 500 722 500 500 500 334"
    " 260 334 584"
)
_BOLD = (
    "278 333 474 556 556 889 722 238 333 333 389 584 278 333 278 278 556 556 556 556 556 556 556"
    " 556 556 556 333 333 584 584 584 611 975 722 722 722 722 667 611 778 722 278 556 722 611 833"
    " 722 778 667 778 722 667 611 722 667 944 667 667 611 333 278 333 584 556 333 556 611 556 611"
    " 556 333 611 611 278 278 556 278 889 611 611 611 611 389 556 333 611 556 778 556 556 500 389"
    " 280 389 584"
)
WIDTHS = {
    "plain": [int(word) for word in _PLAIN.split()],
    "bold": [int(word) for word in _BOLD.split()],
}


def text_width(text: str, font: str, size: float) -> float:
    """How wide ``text`` is, in points. Exact for ASCII; letters with accents are as their base."""
    if font == "code":
        return 0.6 * size * len(text)
    total = 0
    for char in text:
        code = ord(char)
        if not 32 <= code < 127:
            code = ord(unicodedata.normalize("NFKD", char)[0])
        total += WIDTHS[font][code - 32] if 32 <= code < 127 else 600
    return total * size / 1000


class Picture:
    """A picture as PDF holds it: ``data`` unpacked by ``filter`` to rows of grey or RGB."""

    def __init__(self, width: int, height: int, space: str, filter: str, data: bytes) -> None:
        self.width, self.height = width, height
        self.space, self.filter, self.data = space, filter, data


def read_picture(data: bytes) -> Picture:
    """A PNG or a JPEG. Raises ValueError for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _read_png(data)
    if data.startswith(b"\xff\xd8"):
        return _read_jpeg(data)
    raise ValueError("not a PNG and not a JPEG")


def _read_jpeg(data: bytes) -> Picture:
    position = 2
    while position + 9 < len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, parts = struct.unpack_from(">HHB", data, position + 5)
            if parts not in (1, 3):
                break
            return Picture(width, height, "DeviceGray" if parts == 1 else "DeviceRGB", "DCT", data)
        position += 2 + length
    raise ValueError("a JPEG of a kind that is not supported")


def _read_png(data: bytes) -> Picture:
    position, packed, palette, clear, header = 8, b"", b"", b"", b""
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = data[position + 8 : position + 8 + length]
        position += 12 + length
        if kind == b"IHDR":
            header = chunk
        elif kind == b"PLTE":
            palette = chunk
        elif kind == b"tRNS":
            clear = chunk
        elif kind == b"IDAT":
            packed += chunk
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if depth != 8 or interlaced:
        raise ValueError("a PNG with %d bits, or interlaced: save it with 8 bits" % depth)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = _unfilter(zlib.decompress(packed), width, height, channels)
    if colour in (4, 6):
        pixels, space = _on_white(rows, channels), "DeviceGray" if colour == 4 else "DeviceRGB"
    elif colour == 3:
        colours = [palette[n : n + 3] for n in range(0, len(palette), 3)]
        for n, alpha in enumerate(clear):
            colours[n] = bytes((c * alpha + 255 * (255 - alpha)) // 255 for c in colours[n])
        colours += [b"\0\0\0"] * (256 - len(colours))
        pixels, space = b"".join(map(colours.__getitem__, rows)), "DeviceRGB"
    else:
        pixels, space = rows, "DeviceGray" if colour == 0 else "DeviceRGB"
    return Picture(width, height, space, "Flate", zlib.compress(pixels))


def _unfilter(data: bytes, width: int, height: int, channels: int) -> bytes:
    """The rows of a PNG as they were before it was compressed."""
    size = width * channels
    if len(data) < height * (size + 1):
        raise ValueError("a PNG that is cut off")
    above, rows = bytearray(size), []
    for start in range(0, height * (size + 1), size + 1):
        kind, row = data[start], bytearray(data[start + 1 : start + 1 + size])
        if kind == 1:
            for i in range(channels, size):
                row[i] = (row[i] + row[i - channels]) & 255
        elif kind == 2:
            for i in range(size):
                row[i] = (row[i] + above[i]) & 255
        elif kind == 3:
            for i in range(size):
                left = row[i - channels] if i >= channels else 0
                row[i] = (row[i] + (left + above[i]) // 2) & 255
        elif kind == 4:
            for i in range(size):
                a, b, c = 0, above[i], 0
                if i >= channels:
                    a, c = row[i - channels], above[i - channels]
                p, q, r = abs(b - c), abs(a - c), abs(a + b - 2 * c)
                row[i] = (row[i] + (a if p <= q and p <= r else b if q <= r else c)) & 255
        rows.append(bytes(row))
        above = row
    return b"".join(rows)


def _on_white(pixels: bytes, channels: int) -> bytes:
    """Pixels without their transparency, as they look on white paper."""
    colours = channels - 1
    alpha = pixels[colours::channels]
    result = bytearray(len(alpha) * colours)
    for n in range(colours):
        plane = pixels[n::channels]
        if alpha.count(255) != len(alpha):
            plane = bytes((c * a + 255 * (255 - a)) // 255 for c, a in zip(plane, alpha))
        result[n::colours] = plane
    return bytes(result)


class Pdf:
    """A document that grows page by page. Points, from the lower left corner; A4 by default."""

    def __init__(self, width: float = 595, height: float = 842, title: str = "") -> None:
        self.width, self.height, self.title = width, height, title
        self.unknown: Set[str] = set()
        self._pages: List[List[str]] = []
        self._pictures: Dict[int, Picture] = {}

    @property
    def pages(self) -> int:
        return len(self._pages)

    def add_page(self) -> None:
        self._pages.append([])

    def text(
        self, x: float, y: float, text: str, font: str = "plain", size: float = 10, page: int = -1
    ) -> None:
        operator = "BT /%s %.4g Tf %.2f %.2f Td (%s) Tj ET"
        self._pages[page].append(operator % (font, size, x, y, self._encode(text)))

    def box(self, x: float, y: float, width: float, height: float, grey: float) -> None:
        self._pages[-1].append("q %.3f g %.2f %.2f %.2f %.2f re f Q" % (grey, x, y, width, height))

    def line(self, x: float, y: float, to_x: float, to_y: float, grey: float = 0.7) -> None:
        self._pages[-1].append(
            "q 0.5 w %.3f G %.2f %.2f m %.2f %.2f l S Q" % (grey, x, y, to_x, to_y)
        )

    def picture(self, x: float, y: float, width: float, height: float, picture: Picture) -> None:
        number = next((n for n, p in self._pictures.items() if p is picture), None)
        if number is None:
            number = len(self._pictures)
            self._pictures[number] = picture
        self._pages[-1].append(
            "q %.2f 0 0 %.2f %.2f %.2f cm /P%d Do Q" % (width, height, x, y, number)
        )

    def _encode(self, text: str) -> str:
        """Text for a PDF string: one byte a character, shown here as Latin-1."""
        encoded = bytearray()
        for char in text:
            try:
                encoded += char.encode("cp1252")
            except UnicodeEncodeError:
                simpler = unicodedata.normalize("NFKD", char).encode("ascii", "ignore")
                if not simpler:
                    self.unknown.add(char)
                encoded += simpler or b"?"
        return re.sub(r"([\\()])", r"\\\1", re.sub(rb"[\0-\x1f]", b" ", encoded).decode("latin-1"))

    def save(self, path: str) -> None:
        if not self._pages:
            self.add_page()
        objects: List[bytes] = [b""] * 3  # catalogue, pages, information: written at the end
        fonts = "".join(
            "/%s << /Type /Font /Subtype /Type1 /BaseFont /%s /Encoding /WinAnsiEncoding >> " % pair
            for pair in FONTS.items()
        )
        pictures = ""
        for number, picture in self._pictures.items():
            head = (
                "/Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /%s"
                " /BitsPerComponent 8 /Filter /%sDecode"
            ) % (picture.width, picture.height, picture.space, picture.filter)
            objects.append(_stream(head, picture.data))
            pictures += "/P%d %d 0 R " % (number, len(objects))
        kids = []
        for operators in self._pages:
            content = zlib.compress("\n".join(operators).encode("latin-1"))
            objects.append(_stream("/Filter /FlateDecode", content))
            page = (
                "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %g %g] /Contents %d 0 R"
                " /Resources << /Font << %s>> /XObject << %s>> >> >>"
            ) % (self.width, self.height, len(objects), fonts, pictures)
            objects.append(page.encode())
            kids.append("%d 0 R" % len(objects))
        objects[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
        objects[1] = (
            "<< /Type /Pages /Kids [%s] /Count %d >>" % (" ".join(kids), len(kids))
        ).encode()
        title = ("\ufeff" + self.title).encode("utf-16-be", "replace").hex()
        objects[2] = ("<< /Title <%s> /Producer (pdf-report) >>" % title).encode()
        _write(path, objects)


def _stream(head: str, data: bytes) -> bytes:
    return ("<< %s /Length %d >>\nstream\n" % (head, len(data))).encode() + data + b"\nendstream"


def _write(path: str, objects: List[bytes]) -> None:
    offsets: List[int] = []
    output = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    for number, content in enumerate(objects, 1):
        offsets.append(len(output))
        output += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = len(output)
    output += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    for offset in offsets:
        output += b"%010d 00000 n \n" % offset
    output += b"trailer\n<< /Size %d /Root 1 0 R /Info 3 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        table,
    )
    with open(path, "wb") as file:
        file.write(output)


def fit(width: float, height: float, most_width: float, most_height: float) -> Tuple[float, float]:
    """The size of a picture that has to fit in, with its proportions kept."""
    scale = min(most_width / width, most_height / height)
    return width * scale, height * scale
