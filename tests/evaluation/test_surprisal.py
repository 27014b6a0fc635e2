import base64
import gzip
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.evaluation import Surprisal, evaluate, heat, surprisal
from mambabyte.evaluation.surprisal_page import page
from tests.evaluation.examples import small_model

MODEL = small_model()
HOSTILE = (
    b"<script>alert(1)</script>&amp;\"'</pre><img src=x onerror=alert(1)>\x00\x1b[31m\r\n\xff\xfe\xf0\x9f\x98"
    + "é \U0001f600 \u202eevil\u202c \u200b e\u0301 \u05e9\u05dc\u05d5\u05dd \ufeff\u2028".encode()
)

ELEMENTS = {"html", "head", "meta", "title", "style", "body", "h1", "p", "pre", "i", "u", "svg", "rect"}


def measured(data: bytes) -> Surprisal:
    """Any bytes with some bits; the model is not asked."""
    bits = np.linspace(0, 14, len(data))
    array = np.frombuffer(data, np.uint8)
    return Surprisal(name="<a href=x>\x1b", data=array, bits=bits, mode="stream", context=None, stride=None)


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.titles: list[str] = []
        self.cells: list[str] = []
        self.style = ""
        self._inside = ""
        self._in_text = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._in_text = dict(attrs).get("class") == "text" if tag == "pre" else self._in_text
        self._inside = tag
        if tag == "i" and self._in_text:
            self.cells.append("")
            self.titles.append(dict(attrs)["title"] or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag in ("i", "style") else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.style += data
        elif self._in_text and self._inside in ("i", "u"):
            self.cells[-1] += data

    def handle_decl(self, decl: str) -> None:
        assert decl == "DOCTYPE html"

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")


@pytest.mark.parametrize("options", [{}, {"mode": "window", "context": 20}, {"mode": "sliding", "context": 16}])
def test_its_sum_is_what_evaluate_reports(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "any file.bin"
    path.write_bytes(HOSTILE * 2)
    found = surprisal(MODEL, path, **options)
    report = evaluate(MODEL, path, xz=False, **options)
    assert found.bits.sum() == pytest.approx(report.bits, rel=1e-12)
    assert found.bits_per_byte == pytest.approx(report.bits_per_byte, rel=1e-12)
    assert found.data.tobytes() == HOSTILE * 2
    assert (found.mode, found.context, found.stride) == (report.mode, report.context, report.stride)


def test_a_file_is_taken_as_it_lies(tmp_path: Path) -> None:
    packed = gzip.compress(b"packed " * 9)
    (tmp_path / "file.gz:3").write_bytes(packed)
    found = surprisal(MODEL, tmp_path / "file.gz:3", chunk=5)
    assert found.data.tobytes() == packed
    np.testing.assert_allclose(found.bits, surprisal(MODEL, packed).bits, rtol=1e-9)


def test_an_empty_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "nothing").touch()
    with pytest.raises(ValueError, match="nothing: empty"):
        surprisal(MODEL, tmp_path / "nothing")


@given(st.binary(max_size=60) | st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_cells_hold_every_byte_once_in_order_and_print_harmlessly(data: bytes) -> None:
    found = measured(data)
    cells = list(found.cells())
    assert [byte for cell in cells for byte in range(cell.start, cell.stop)] == list(range(len(data)))
    for cell in cells:
        assert cell.text.isprintable()
        assert cell.bits == pytest.approx(found.bits[cell.start : cell.stop].mean())
        own = data[cell.start : cell.stop]
        if not cell.is_escape:
            assert cell.text.removeprefix("\u25cc").encode() in (own, own.removeprefix("\u25cc".encode()))
        assert cell.is_newline == (own == b"\n")


def test_a_part_of_the_cells_is_the_beginning_of_the_whole() -> None:
    found = measured(b"plain text")
    assert list(found.cells(4)) == list(found.cells())[:4]


@given(st.integers(1, 50), st.integers(1, 60))
def test_the_profile_is_the_mean_of_stretches(size: int, pieces: int) -> None:
    found = measured(bytes(size))
    means = found.profile(pieces)
    assert len(means) == min(size, pieces)
    lengths = np.diff(np.linspace(0, size, len(means) + 1).astype(int))
    assert (means * lengths).sum() == pytest.approx(found.bits.sum())


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=80) | st.just(HOSTILE))
def test_no_byte_of_a_file_becomes_markup(data: bytes) -> None:
    found = measured(data)
    parsed = Page("".join(page(found)))
    assert parsed.cells == [cell.text for cell in found.cells()]
    assert parsed.elements <= ELEMENTS
    assert not parsed.attributes & {"src", "href", "style"}
    assert not [name for name in parsed.attributes if name.startswith("on")]


def test_the_page_allows_nothing_but_its_own_style() -> None:
    text = "".join(page(measured(HOSTILE)))
    style = Page(text).style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in text
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?:|//", text.replace("</", ""))
    text.encode("utf-8")


def test_a_cell_of_the_page_says_its_bits() -> None:
    parsed = Page("".join(page(measured("a\u00e9".encode()))))
    assert parsed.titles == ["byte 0: 0.000 bits", "bytes 1 to 2: 10.500 bits"]


def test_the_archive_and_the_json_hold_every_byte(tmp_path: Path) -> None:
    found = measured(HOSTILE)
    found.save_npz(tmp_path / "bits")
    with np.load(tmp_path / "bits") as archive:
        np.testing.assert_array_equal(archive["data"], found.data)
        np.testing.assert_array_equal(archive["bits"], found.bits)
    result = json.loads(json.dumps(found.to_dict()))
    assert result["bits"] == found.bits.tolist()
    assert result["bytes"] == len(HOSTILE)


def test_levels_rise_with_the_bits_and_darken() -> None:
    levels = [heat.level(bits) for bits in np.linspace(0, 20, 400)]
    assert levels == sorted(levels)
    assert set(levels) == set(range(heat.LEVELS))
    assert heat.level(math.nextafter(8, 0)) < heat.level(8)
    light = [sum(heat.background(level)) for level in range(heat.LEVELS)]
    assert light == sorted(light, reverse=True)
    assert len(set(light)) == heat.LEVELS
