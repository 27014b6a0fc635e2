"""The surprisal of a file as one HTML page: no script, nothing fetched, safe whatever bytes the file holds.

Every byte reaches the page as text with &, <, > and quotes escaped, and what does not print as an escape in ASCII; each
character stands in an element of its own that is isolated from the direction of its neighbours. The content security
policy allows nothing but the page's own style sheet, by its hash.
"""

import base64
import hashlib
import html
from collections.abc import Iterable, Iterator

from mambabyte.evaluation import heat
from mambabyte.evaluation.surprisal import Cell, Surprisal

BARS = 240
BLOCK = 2048  # cells of a block that the browser may leave undrawn until it is scrolled to

_STYLE = """
:root { color-scheme: light }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; color: #222;
  background: #fff }
h1 { font-size: 1.2rem; overflow-wrap: anywhere }
svg { width: 100%; height: 6rem; background: #f3f3f3 }
pre { font: 13px/1.6 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 }
pre.text { content-visibility: auto; contain-intrinsic-size: auto 20rem }
i { font-style: normal; unicode-bidi: isolate }
u { text-decoration: none; opacity: .55 }
i:hover { outline: 2px solid #06c }
""" + "\n".join(
    f".k{n} {{ background: rgb{heat.background(n)}; color: rgb{heat.foreground(n)} }}" for n in range(heat.LEVELS)
)


def page(surprisal: Surprisal) -> Iterator[str]:
    """The page in pieces, to be joined or written one after another, in UTF-8."""
    name = html.escape("".join(c if c.isprintable() else "\ufffd" for c in surprisal.name))
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    yield (
        '<!DOCTYPE html>\n<html lang="en" dir="ltr">\n<head>\n<meta charset="utf-8">\n'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{digest}'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Surprisal of {name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
    )
    yield f"<p>{len(surprisal.bits):,} bytes, {surprisal.bits_per_byte:.4f} bits per byte{_reading(surprisal)}. "
    yield "Each character is coloured by the bits that the model needs for one of its bytes.</p>\n"
    yield f"<pre>{_legend()}</pre>\n{_bars(surprisal)}\n"
    for block in _blocks(surprisal.cells()):
        yield f'<pre class="text">{"".join(map(_element, block))}</pre>\n'
    yield "</body>\n</html>\n"


def _reading(surprisal: Surprisal) -> str:
    if surprisal.context is None:
        return ", the state carried over the whole file"
    stride = "" if surprisal.stride is None else f" every {surprisal.stride:,}"
    return f", windows of {surprisal.context:,} bytes{stride}"


def _legend() -> str:
    return "bits " + " ".join(f'<i class="k{n}"> {html.escape(heat.label(n))} </i>' for n in range(heat.LEVELS))


def _bars(surprisal: Surprisal) -> str:
    """Mean bits along the file as bars; the height of the picture is the highest of them."""
    means = surprisal.profile(BARS)
    top = max(float(means.max()), 1e-9)
    bars = "".join(
        f'<rect x="{i}" y="{1 - height:.4f}" width="1" height="{height:.4f}">'
        f"<title>{height * top:.3f} bits</title></rect>"
        for i, height in enumerate(means / top)
    )
    return (
        f'<svg viewBox="0 0 {len(means)} 1" preserveAspectRatio="none" fill="#8a2433" role="img">'
        f"<title>Mean bits along the file, at most {top:.3f}</title>{bars}</svg>"
    )


def _blocks(cells: Iterable[Cell]) -> Iterator[list[Cell]]:
    """Cells in blocks that end with a line where they can."""
    block: list[Cell] = []
    for cell in cells:
        block.append(cell)
        if len(block) >= BLOCK and (cell.is_newline or len(block) >= 2 * BLOCK):
            yield block
            block = []
    if block:
        yield block


def _element(cell: Cell) -> str:
    text = html.escape(cell.text)
    shown = f"<u>{text}</u>" if cell.is_escape else text
    bytes_ = f"byte {cell.start}" if cell.stop == cell.start + 1 else f"bytes {cell.start} to {cell.stop - 1}"
    end = "\n" if cell.is_newline else ""
    return f'<i class="k{heat.level(cell.bits)}" title="{bytes_}: {cell.bits:.3f} bits">{shown}</i>{end}'
