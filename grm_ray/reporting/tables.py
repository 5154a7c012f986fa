"""Tables of figures, as HTML that scrolls where it is wide and as Markdown that reads as it is."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grm_ray.reporting.numbers import minus
from grm_ray.reporting.run import number
from grm_ray.reporting.samples import clean

NOTHING = "–"
# Signs that Markdown reads as more than themselves; an underscore inside a word is none of them.
_MARKDOWN = re.compile(r"([\\`*|\[\]~$]|(?<![^\W_])_|_(?![^\W_]))")
_MOST = 28


@dataclass(frozen=True)
class Figure:
    """A value, its interval in smaller print, and a sign before both: `▲ 68.3 (64.9–71.6)`."""

    text: str
    more: str = ""
    sign: str = ""


TableCell = str | Figure


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; text is plain, whoever renders it escapes it.

    `names` columns at the left are words, the others figures. With two of them a row whose first
    cell is filled begins a group. The last `foot` rows are set apart from the others. With `prose`
    the last of the words is a sentence or a path: it is shown whole, in several lines. `note`
    stands under the table.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    title: str = ""
    names: int = 1
    foot: int = 0
    prose: bool = False
    note: str = ""

    def html(self) -> str:
        head = "".join(
            f'<th scope="col"{_class(i, self.names)}>{_short(text)}</th>'
            for i, text in enumerate(self.head)
        )
        body = "".join(self._row(i, row) for i, row in enumerate(self.rows))
        title = f"<h3>{clean(self.title)}</h3>" if self.title else ""
        note = f'<p class="about">{clean(self.note)}</p>' if self.note else ""
        # A box that scrolls takes the focus, or no keyboard could scroll it.
        return (
            f'{title}<div class="scroll" tabindex="0"><table class="figures"><thead><tr>{head}'
            f"</tr></thead><tbody>{body}</tbody></table></div>{note}"
        )

    def markdown(self) -> str:
        lines = [
            "| " + " | ".join(plain(text) for text in self.head) + " |",
            "|"
            + "|".join("---" if i < self.names else "---:" for i in range(len(self.head)))
            + "|",
        ]
        for row in self.rows:
            lines.append("| " + " | ".join(_in_markdown(cell) for cell in row) + " |")
        title = f"**{plain(self.title)}**\n\n" if self.title else ""
        note = f"\n\n{plain(self.note)}" if self.note else ""
        return title + "\n".join(lines) + note

    def _row(self, place: int, row: Sequence[TableCell]) -> str:
        kind = ""
        if place >= len(self.rows) - self.foot:
            kind = ' class="foot"'
        elif self.names == 2 and not self.prose and row[0] and place:
            kind = ' class="group"'
        cells = "".join(self._cell(i, cell) for i, cell in enumerate(row))
        return f"<tr{kind}>{cells}</tr>"

    def _cell(self, column: int, cell: TableCell) -> str:
        if column >= self.names:
            return f"<td>{_in_html(cell)}</td>"
        if self.prose and column == self.names - 1:
            return f'<td class="prose">{_in_html(cell)}</td>'
        return f'<th scope="row"{_class(column, self.names)}>{_short(str(cell))}</th>'


def plain(text: Any) -> str:
    """`text` as Markdown that shows it and does nothing else, in one line."""
    line = " ".join(str(text).split())
    shown = "".join(c if c.isprintable() else "�" for c in line)
    return _MARKDOWN.sub(r"\\\1", shown.replace("&", "&amp;").replace("<", "&lt;"))


def shortened(text: str, most: int = _MOST) -> str:
    """`text`, or its two ends with dots between: names often differ in their last part only."""
    if len(text) <= most:
        return text
    tail = (most - 1) * 2 // 5
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def finite(value: Any) -> float | None:
    """`value` as a float, None where it is no number or none that says anything."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def fixed(value: Any, digits: int, factor: float = 1, plus: bool = False) -> str:
    """`value * factor` with `digits` places, a real minus sign, and a plus on request."""
    found = finite(value)
    if found is None:
        return NOTHING
    text = f"{found * factor:.{digits}f}"
    if float(text) == 0:
        return text.removeprefix("-")
    return minus(f"+{text}" if plus and found > 0 else text)


def _class(column: int, names: int) -> str:
    if column >= names:
        return ""
    return ' class="name stays"' if column == 0 else ' class="name"'


def _short(text: str) -> str:
    short = shortened(text)
    return clean(text) if short == text else f'<span title="{clean(text)}">{clean(short)}</span>'


def _in_html(cell: TableCell) -> str:
    if isinstance(cell, str):
        return clean(cell)
    up = " up" if cell.sign == "▲" else ""
    sign = f'<i class="sign{up}">{clean(cell.sign)}</i>' if cell.sign else ""
    more = f" <small>({clean(cell.more)})</small>" if cell.more else ""
    return f"{sign}{clean(cell.text)}{more}"


def _in_markdown(cell: TableCell) -> str:
    if isinstance(cell, str):
        return plain(cell)
    sign = f"{cell.sign} " if cell.sign else ""
    return f"{sign}{plain(cell.text)}" + (f" ({plain(cell.more)})" if cell.more else "")
