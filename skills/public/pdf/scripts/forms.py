"""Read and fill in the form of a PDF with pypdf.

    python forms.py list FILE.pdf                    the fields, as JSON
    python forms.py fill FILE.pdf OUT.pdf VALUES.json

Values are an object of names and texts; a box is checked by true. The functions can be imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Mapping

try:
    from pypdf import PdfReader, PdfWriter
    from pypdf.errors import PyPdfError
except ModuleNotFoundError as error:
    raise SystemExit(
        f"The package pypdf is missing in this sandbox (there is no {error.name}). "
        "In the Jupyter server's environment: pip install 'gvisor-kernel[skills]'"
    ) from None

KINDS = {"/Tx": "text", "/Btn": "button", "/Ch": "choice", "/Sig": "signature"}


def list_fields(path: str) -> dict[str, dict[str, Any]]:
    """Each field's kind, its value, and the values that it takes where those are given."""
    found = {}
    for name, field in (PdfReader(path).get_fields() or {}).items():
        kind = KINDS.get(str(field.get("/FT")))
        if kind is None:  # only the parent of others
            continue
        found[name] = {"kind": kind, "value": field.get("/V")}
        choices = field.get("/_States_") or field.get("/Opt")
        if choices:
            found[name]["choices"] = [str(choice) for choice in choices]
    return found


def fill(path: str, output: str, values: Mapping[str, Any]) -> None:
    """Write ``output`` with ``values`` in its fields. Raises ValueError for others."""
    fields = list_fields(path)
    new = {}
    for name, value in values.items():
        if name not in fields:
            raise ValueError(f"no field {name!r}; there are: {', '.join(fields) or 'none'}")
        choices = fields[name].get("choices", [])
        if isinstance(value, bool):
            on = [choice for choice in choices if choice != "/Off"]
            if not on:
                raise ValueError(f"field {name!r} is no box to be checked")
            value = on[0] if value else "/Off"
        elif choices and str(value) not in choices:
            raise ValueError(f"field {name!r} takes {', '.join(choices)}, not {value!r}")
        new[name] = str(value)
    writer = PdfWriter(clone_from=path)
    for page in writer.pages:
        if "/Annots" in page:
            writer.update_page_form_field_values(page, new)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    writer.write(output)


def main(arguments: list[str]) -> int:
    command, rest = (arguments or [""])[0], arguments[1:]
    try:
        if command == "list" and len(rest) == 1:
            print(json.dumps(list_fields(*rest), indent=2, ensure_ascii=False))
        elif command == "fill" and len(rest) == 3:
            values = json.loads(Path(rest[2]).read_text(encoding="utf-8"))
            fill(rest[0], rest[1], values)
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except (OSError, ValueError, PyPdfError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
