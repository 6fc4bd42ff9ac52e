# SPDX-License-Identifier: BSD-3-Clause
"""The ratios as a bar chart in SVG."""

from xml.sax.saxutils import escape

MOST = 3.0          # longer bars are cut here, and show their figure
LABELS, BARS, FIGURES = 410, 440, 60
BAR, GAP, TOP, BOTTOM = 11, 9, 62, 28
CAPTION = 16       # a line of it
SERIES = [("peer", "to the best of QEMU's servers", "#2a6fb0"),
          ("file", "to nbdkit file on a raw file", "#8fb98b")]


def _x(ratio):
    return LABELS + BARS * min(ratio, MOST) / MOST


def _text(x, y, words, size=11, anchor="start", colour="#222"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="{colour}">{escape(words)}</text>')


def _rect(x, y, width, height, colour):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{colour}"/>'


def _line(x, top, bottom, colour, width=1):
    return (f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" '
            f'stroke="{colour}" stroke-width="{width}"/>')


def _bar(y, ratio, colour):
    yield _rect(LABELS, y, _x(ratio.ratio) - LABELS, BAR, colour)
    yield _text(_x(ratio.ratio) + 4, y + BAR - 1, f"{ratio.ratio:.2f}", size=10)
    if ratio.target:
        yield _line(_x(ratio.target), y - 1, y + BAR + 1, "#c03020", 2)


def _row(y, row):
    ratios = [(getattr(row, role), colour) for role, _, colour in SERIES]
    ratios = [(ratio, colour) for ratio, colour in ratios if ratio]
    yield _text(LABELS - 8, y + BAR + 4, row.workload.title, anchor="end")
    for number, (ratio, colour) in enumerate(ratios):
        yield from _bar(y + number * (BAR + 1), ratio, colour)


def _frame(height, wanted):
    yield _text(8, 22, "How many times better qimg is", size=15)
    at = LABELS
    for _, words, colour in SERIES:
        yield _rect(at, 32, BAR, BAR, colour)
        yield _text(at + BAR + 5, 42, words)
        at += 200
    if wanted:
        yield _line(at + 4, 31, 44, "#c03020", 2)
        yield _text(at + 11, 42, "wanted")
    for step in range(int(MOST * 2) + 1):
        x = _x(step / 2)
        yield _line(x, TOP - 6, height - BOTTOM, "#888" if step == 2 else "#e4e4e4")
        yield _text(x, height - BOTTOM + 16, f"{step / 2:g}", anchor="middle", colour="#666")


def svg(rows, caption):
    """The text of the file.  caption: lines that say what is shown and how it is made anew."""
    rows = [row for row in rows if row.peer or row.file]
    step = 2 * BAR + GAP
    width, height = LABELS + BARS + FIGURES, TOP + step * len(rows) + BOTTOM
    whole = height + CAPTION * len(caption) + GAP
    wanted = any(ratio and ratio.target for row in rows for ratio in (row.peer, row.file))
    parts = [_rect(0, 0, width, whole, "#fff"), *_frame(height, wanted)]
    for number, row in enumerate(rows):
        parts += _row(TOP + number * step, row)
    for number, words in enumerate(caption):
        parts.append(_text(8, height + CAPTION * (number + 1) - 4, words, size=10, colour="#666"))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}" '
            f'width="{width}" height="{whole}" font-family="sans-serif">\n'
            + "\n".join(parts) + "\n</svg>\n")
