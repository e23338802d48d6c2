"""Read and write .xlsx workbooks with Python's standard library alone (3.9 or newer).

    from sheets import Formula, read_workbook, write_workbook
    book = read_workbook("in.xlsx")            # {"Sheet1": [["a", "b"], [1, 2.5]], ...}
    write_workbook("out.xlsx", {"Results": [["name", "value"], ["x", 1]]})

As a program:

    python sheets.py show FILE.xlsx [SHEET]
    python sheets.py to-csv FILE.xlsx OUT.csv [SHEET]
    python sheets.py from-csv IN.csv OUT.xlsx

Cells are None, bool, int, float, str, datetime.date, datetime.datetime, or Formula when written.
A formula that is read gives its last computed value. Charts, pictures and styles are not kept.
"""

import csv
import datetime
import math
import posixpath
import re
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple
from xml.sax.saxutils import escape, quoteattr

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
DATE_FORMATS = {*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)}
"""Numbers of the built-in formats that show a date or a time."""
ROWS_MOST, COLUMNS_MOST, TEXT_MOST = 1048576, 16384, 32767
EPOCH_1900 = datetime.datetime(1899, 12, 30)
EPOCH_1904 = datetime.datetime(1904, 1, 1)

Rows = List[List[Any]]


class Formula(str):
    """A cell with a formula, without the equals sign: Formula("SUM(B2:B9)")."""


# Reading.


def read_workbook(path: str) -> Dict[str, Rows]:
    """Every sheet of a workbook by name, as rows of equal length. Empty cells are None."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        workbook_part = _find_workbook(archive)
        workbook = _parse(archive, workbook_part)
        targets = _read_relations(archive, workbook_part, names)
        shared = _read_shared(archive, targets, names)
        dates = _read_date_styles(archive, targets, names)
        properties = workbook.find(_tag("workbookPr"))
        flag = properties.get("date1904") if properties is not None else None
        epoch = EPOCH_1904 if flag in ("1", "true") else EPOCH_1900
        sheets: Dict[str, Rows] = {}
        for sheet in workbook.iter(_tag("sheet")):
            part = targets.get(sheet.get("{%s}id" % RELATIONS, ""), ("", ""))[1]
            if part in names:
                root = _parse(archive, part)
                if root.tag == _tag("worksheet"):  # not a sheet that is a chart
                    sheets[sheet.get("name", part)] = _read_rows(root, shared, dates, epoch)
        return sheets


def read_sheet(path: str, name: Optional[str] = None) -> Rows:
    """The rows of one sheet, by default of the first. Raises KeyError for an unknown name."""
    book = read_workbook(path)
    if name is None:
        return next(iter(book.values()), [])
    if name not in book:
        raise KeyError("no sheet %r; there are %s" % (name, ", ".join(map(repr, book))))
    return book[name]


def _tag(name: str) -> str:
    return "{%s}%s" % (MAIN, name)


def _parse(archive: zipfile.ZipFile, part: str) -> ElementTree.Element:
    root = ElementTree.fromstring(archive.read(part))
    # "Strict" workbooks have other namespaces and are otherwise the same.
    for element in root.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.replace("http://purl.oclc.org/ooxml/spreadsheetml/main", MAIN)
        for key in [key for key in element.attrib if "purl.oclc.org" in key]:
            element.attrib["{%s}%s" % (RELATIONS, key.rpartition("}")[2])] = element.attrib[key]
    return root


def _find_workbook(archive: zipfile.ZipFile) -> str:
    for relation in ElementTree.fromstring(archive.read("_rels/.rels")):
        if relation.get("Type", "").endswith("/officeDocument"):
            return relation.get("Target", "").lstrip("/")
    raise ValueError("this is no workbook")


def _read_relations(
    archive: zipfile.ZipFile, part: str, names: Iterable[str]
) -> Dict[str, Tuple[str, str]]:
    """Kind and target of each relation of a part, by its id."""
    folder, name = posixpath.split(part)
    relations = posixpath.join(folder, "_rels", name + ".rels")
    found = {}
    if relations in names:
        for relation in ElementTree.fromstring(archive.read(relations)):
            target = posixpath.normpath(posixpath.join("/" + folder, relation.get("Target", "")))
            kind = relation.get("Type", "").rpartition("/")[2]
            found[relation.get("Id", "")] = (kind, target.lstrip("/"))
    return found


def _part_of_kind(
    targets: Mapping[str, Tuple[str, str]], kind: str, names: Iterable[str]
) -> Optional[str]:
    return next((part for k, part in targets.values() if k == kind and part in names), None)


def _text(element: ElementTree.Element) -> str:
    """The text of a string, in one piece or in runs, without its phonetic guide."""
    pieces = []
    for child in element:
        if child.tag == _tag("t"):
            pieces.append(child.text or "")
        elif child.tag == _tag("r"):
            pieces.extend(t.text or "" for t in child.iter(_tag("t")))
    return _unescape("".join(pieces))


def _unescape(text: str) -> str:
    return re.sub(r"_x([0-9A-Fa-f]{4})_", lambda match: chr(int(match[1], 16)), text)


def _read_shared(
    archive: zipfile.ZipFile, targets: Mapping[str, Tuple[str, str]], names: Iterable[str]
) -> List[str]:
    part = _part_of_kind(targets, "sharedStrings", names)
    return [] if part is None else [_text(item) for item in _parse(archive, part)]


def _read_date_styles(
    archive: zipfile.ZipFile, targets: Mapping[str, Tuple[str, str]], names: Iterable[str]
) -> List[bool]:
    """For each cell style, whether it shows a number as a date or a time."""
    part = _part_of_kind(targets, "styles", names)
    if part is None:
        return []
    root = _parse(archive, part)
    dates = set(DATE_FORMATS)
    for form in root.iter(_tag("numFmt")):
        code = re.sub(r'"[^"]*"|\\.|\[(?![hms]+\])[^\]]*\]', "", form.get("formatCode", ""))
        number = int(form.get("numFmtId", "0"))
        if re.search(r"[ymdhs]", code, re.IGNORECASE):
            dates.add(number)
        else:
            dates.discard(number)
    styles = root.find(_tag("cellXfs"))
    return [] if styles is None else [int(xf.get("numFmtId", "0")) in dates for xf in styles]


def _read_rows(
    root: ElementTree.Element, shared: List[str], dates: List[bool], epoch: datetime.datetime
) -> Rows:
    rows: Rows = []
    data = root.find(_tag("sheetData"))
    for row in data if data is not None else ():
        number = int(row.get("r", len(rows) + 1))
        if number > ROWS_MOST:
            raise ValueError("a row has the number %d" % number)
        cells: List[Any] = []
        for cell in row:
            column = _column(cell.get("r", "")) or len(cells) + 1
            if column > COLUMNS_MOST:
                raise ValueError("a cell is in column %d" % column)
            cells.extend([None] * (column - len(cells)))
            cells[column - 1] = _value(cell, shared, dates, epoch)
        while len(rows) < number:
            rows.append([])
        rows[number - 1] = cells
    while rows and not any(cell is not None for cell in rows[-1]):
        rows.pop()
    width = max((len(row) for row in rows), default=0)
    return [row + [None] * (width - len(row)) for row in rows]


def _column(reference: str) -> int:
    column = 0
    for letter in re.match("[A-Z]*", reference.upper())[0]:
        column = column * 26 + ord(letter) - 64
    return column


def _value(
    cell: ElementTree.Element, shared: List[str], dates: List[bool], epoch: datetime.datetime
) -> Any:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        inline = cell.find(_tag("is"))
        return None if inline is None else _text(inline)
    text = cell.findtext(_tag("v"))
    if text is None or (text == "" and kind != "str"):
        return None
    if kind == "s":
        return shared[int(text)]
    if kind == "b":
        return text.strip() in ("1", "true")
    if kind in ("str", "e"):
        return _unescape(text)
    if kind == "d":
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    number = float(text)
    style = int(cell.get("s", "0"))
    if style < len(dates) and dates[style]:
        return _date(number, epoch)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _date(number: float, epoch: datetime.datetime) -> Any:
    """The date or time of a day number; a number without a day is a time."""
    if epoch is EPOCH_1900 and 1 <= number < 60:
        number += 1  # spreadsheets have a 29 February 1900
    try:
        moment = epoch + datetime.timedelta(seconds=round(number * 86400, 3))
    except OverflowError:
        return number
    if number < 1 and number >= 0:
        return moment.time()
    return moment


# Writing.


def write_workbook(
    path: str, sheets: Mapping[str, Iterable[Iterable[Any]]], header: bool = True
) -> None:
    """Write rows to a workbook. With ``header`` the first row of a sheet is bold and stays in view.

    Text is text: it never becomes a formula, whatever it begins with; use Formula for one.
    Anything with a ``tolist`` (a NumPy array or number) or an ``isoformat`` is understood too.
    """
    if not sheets:
        raise ValueError("a workbook needs a sheet")
    names = list(sheets)
    for name in names:
        if not 1 <= len(name) <= 31 or re.search(r"[\[\]:*?/\\\x00-\x1f]", name):
            raise ValueError(
                "%r cannot be a sheet's name: 1 to 31 characters, none of [ ] : * ? / \\" % name
            )
    if len({name.lower() for name in names}) != len(names):
        raise ValueError("two sheets have the same name")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        numbers = range(1, len(names) + 1)
        archive.writestr("[Content_Types].xml", _content_types(numbers))
        archive.writestr("_rels/.rels", _relations([("rId1", "officeDocument", "xl/workbook.xml")]))
        parts = [("rId%d" % n, "worksheet", "worksheets/sheet%d.xml" % n) for n in numbers]
        parts.append(("rId%d" % (len(names) + 1), "styles", "styles.xml"))
        archive.writestr("xl/_rels/workbook.xml.rels", _relations(parts))
        entries = "".join(
            '<sheet name=%s sheetId="%d" r:id="rId%d"/>' % (quoteattr(name), n, n)
            for n, name in zip(numbers, names)
        )
        archive.writestr(
            "xl/workbook.xml",
            _xml('<workbook xmlns="%s" xmlns:r="%s"><sheets>%s</sheets></workbook>')
            % (MAIN, RELATIONS, entries),
        )
        archive.writestr("xl/styles.xml", _xml(STYLES))
        for n, name in zip(numbers, names):
            rows = [list(row) for row in sheets[name]]
            archive.writestr("xl/worksheets/sheet%d.xml" % n, _sheet(rows, header, n == 1))


PLAIN, BOLD, DATE, MOMENT, TIME = range(5)
STYLES = (
    '<styleSheet xmlns="%s">'
    '<numFmts count="3"><numFmt numFmtId="164" formatCode="yyyy\\-mm\\-dd"/>'
    '<numFmt numFmtId="165" formatCode="yyyy\\-mm\\-dd hh:mm:ss"/>'
    '<numFmt numFmtId="166" formatCode="hh:mm:ss"/></numFmts>'
    '<fonts count="2"><font><sz val="11"/><name val="Calibri"/></font>'
    '<font><b/><sz val="11"/><name val="Calibri"/></font></fonts>'
    '<fills count="2"><fill><patternFill patternType="none"/></fill>'
    '<fill><patternFill patternType="gray125"/></fill></fills>'
    '<borders count="1"><border><left/><right/><top/><bottom/><diagonal/></border></borders>'
    '<cellStyleXfs count="1"><xf numFmtId="0" fontId="0" fillId="0" borderId="0"/></cellStyleXfs>'
    '<cellXfs count="5"><xf numFmtId="0" fontId="0" fillId="0" borderId="0" xfId="0"/>'
    '<xf numFmtId="0" fontId="1" fillId="0" borderId="0" xfId="0" applyFont="1"/>'
    '<xf numFmtId="164" fontId="0" fillId="0" borderId="0" xfId="0" applyNumberFormat="1"/>'
    '<xf numFmtId="165" fontId="0" fillId="0" borderId="0" xfId="0" applyNumberFormat="1"/>'
    '<xf numFmtId="166" fontId="0" fillId="0" borderId="0" xfId="0" applyNumberFormat="1"/>'
    '</cellXfs><cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles>'
    "</styleSheet>"
) % MAIN


def _xml(text: str) -> str:
    return '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n' + text


def _content_types(numbers: Iterable[int]) -> str:
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml."
    parts = [("/xl/workbook.xml", "sheet.main"), ("/xl/styles.xml", "styles")]
    parts += [("/xl/worksheets/sheet%d.xml" % n, "worksheet") for n in numbers]
    overrides = "".join(
        '<Override PartName="%s" ContentType="%s%s+xml"/>' % (part, kind, name)
        for part, name in parts
    )
    return _xml(
        '<Types xmlns="%s/content-types">'
        '<Default Extension="rels"'
        ' ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>%s</Types>' % (PACKAGE, overrides)
    )


def _relations(parts: Iterable[Tuple[str, str, str]]) -> str:
    entries = "".join(
        '<Relationship Id="%s" Type="%s/%s" Target="%s"/>' % (id_, RELATIONS, kind, target)
        for id_, kind, target in parts
    )
    return _xml('<Relationships xmlns="%s/relationships">%s</Relationships>' % (PACKAGE, entries))


def _sheet(rows: Rows, header: bool, first: bool) -> str:
    if len(rows) > ROWS_MOST or any(len(row) > COLUMNS_MOST for row in rows):
        raise ValueError("a sheet has at most %d rows and %d columns" % (ROWS_MOST, COLUMNS_MOST))
    rows = [[_plain(cell) for cell in row] for row in rows]
    pieces = ['<worksheet xmlns="%s"><sheetViews><sheetView workbookViewId="0"' % MAIN]
    pieces.append(' tabSelected="1">' if first else ">")
    if header and len(rows) > 1:
        pieces.append('<pane ySplit="1" topLeftCell="A2" activePane="bottomLeft" state="frozen"/>')
    pieces.append("</sheetView></sheetViews>")
    widths = _widths(rows)
    if widths:
        pieces.append("<cols>")
        for n, width in enumerate(widths, 1):
            pieces.append('<col min="%d" max="%d" width="%d" customWidth="1"/>' % (n, n, width))
        pieces.append("</cols>")
    pieces.append("<sheetData>")
    for number, row in enumerate(rows, 1):
        pieces.append('<row r="%d">' % number)
        for column, cell in enumerate(row, 1):
            reference = "%s%d" % (column_name(column), number)
            pieces.append(_cell(reference, cell, header and number == 1))
        pieces.append("</row>")
    pieces.append("</sheetData></worksheet>")
    return _xml("".join(pieces))


def column_name(column: int) -> str:
    """The letters of a column: 1 is A, 28 is AB."""
    name = ""
    while column:
        column, letter = divmod(column - 1, 26)
        name = chr(65 + letter) + name
    return name


def _plain(value: Any) -> Any:
    """One of the kinds of value that a cell has; text for anything unknown."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if hasattr(value, "to_pydatetime"):
        value = value.to_pydatetime()
    if value is None or value != value or type(value).__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(value, (bool, int, float, str, datetime.date, datetime.time)):
        return value
    return str(value)


def _cell(reference: str, value: Any, bold: bool) -> str:
    style = ' s="%d"' % BOLD if bold else ""
    if value is None:
        return ""
    if isinstance(value, Formula):
        return '<c r="%s"%s><f>%s</f></c>' % (reference, style, _escape(value))
    if isinstance(value, bool):
        return '<c r="%s"%s t="b"><v>%d</v></c>' % (reference, style, value)
    if isinstance(value, (int, float)):
        if math.isfinite(value) and (isinstance(value, float) or abs(value) < 2**53):
            return '<c r="%s"%s><v>%r</v></c>' % (reference, style, value)
        value = str(value)  # a spreadsheet has 15 digits, and no infinity
    if isinstance(value, datetime.date) and value.year < 1901:
        value = value.isoformat()  # days of 1900 are counted wrongly, earlier ones not at all
    if isinstance(value, datetime.datetime):
        number = (value.replace(tzinfo=None) - EPOCH_1900) / datetime.timedelta(days=1)
        return '<c r="%s" s="%d"><v>%r</v></c>' % (reference, MOMENT, number)
    if isinstance(value, datetime.date):
        days = (value - EPOCH_1900.date()).days
        return '<c r="%s" s="%d"><v>%d</v></c>' % (reference, DATE, days)
    if isinstance(value, datetime.time):
        seconds = value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6
        return '<c r="%s" s="%d"><v>%r</v></c>' % (reference, TIME, seconds / 86400)
    if len(value) > TEXT_MOST:
        raise ValueError(
            "the text for %s has %d characters; a cell takes %d"
            % (reference, len(value), TEXT_MOST)
        )
    text = '<t xml:space="preserve">%s</t>' % _escape(value)
    return '<c r="%s"%s t="inlineStr"><is>%s</is></c>' % (reference, style, text)


def _escape(text: str) -> str:
    text = re.sub(r"_(?=x[0-9A-Fa-f]{4}_)", "_x005F_", text)
    text = re.sub(
        "[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff]", lambda match: "_x%04X_" % ord(match[0]), text
    )
    return escape(re.sub("[\ud800-\udfff]", "\ufffd", text))


def _widths(rows: Rows) -> List[int]:
    """Column widths in characters, by the first thousand rows."""
    widths: List[int] = []
    for row in rows[:1000]:
        widths.extend([8] * (len(row) - len(widths)))
        for n, cell in enumerate(row):
            length = 19 if isinstance(cell, datetime.datetime) else len(str(cell or "")) + 2
            widths[n] = min(max(widths[n], length), 60)
    return widths


# The program.


def main(arguments: List[str]) -> int:
    if len(arguments) in (2, 3) and arguments[0] == "show":
        name = arguments[2] if len(arguments) == 3 else None
        book = {name: read_sheet(arguments[1], name)} if name else read_workbook(arguments[1])
        for title, rows in book.items():
            print("# %s: %d rows, %d columns" % (title, len(rows), len(rows[0]) if rows else 0))
            for row in rows[:50]:
                print("\t".join("" if cell is None else str(cell) for cell in row))
            if len(rows) > 50:
                print("... %d rows more" % (len(rows) - 50))
        return 0
    if len(arguments) in (3, 4) and arguments[0] == "to-csv":
        rows = read_sheet(arguments[1], arguments[3] if len(arguments) == 4 else None)
        with open(arguments[2], "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        return 0
    if len(arguments) == 3 and arguments[0] == "from-csv":
        with open(arguments[1], newline="", encoding="utf-8-sig") as file:
            rows = [[_guess(text) for text in row] for row in csv.reader(file)]
        write_workbook(arguments[2], {"Sheet1": rows})
        return 0
    print(__doc__, file=sys.stderr)
    return 2


def _guess(text: str) -> Any:
    """A number where the text is one and would be written the same way; else the text."""
    if re.fullmatch(r"-?(0|[1-9]\d{0,14})", text):
        return int(text)
    if re.fullmatch(r"-?(0|[1-9]\d*)\.\d+([eE][+-]?\d+)?", text):
        return float(text)
    return text or None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
