"""From bits to colours: ten levels from white (no surprise) over amber to dark red (more than 12 bits)."""

import bisect

LIMITS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)  # bits at which the next level begins
LEVELS = len(LIMITS) + 1
_ANCHORS = ((255, 255, 255), (255, 221, 128), (222, 84, 44), (82, 10, 36))


def level(bits: float) -> int:
    """0 (least) to 9 (most)."""
    return bisect.bisect_right(LIMITS, bits)


def background(level: int) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255: darker for every level, so that grey and colour-blind eyes see the order too."""
    place = level / (LEVELS - 1) * (len(_ANCHORS) - 1)
    left = min(int(place), len(_ANCHORS) - 2)
    red, green, blue = (
        round(a + (b - a) * (place - left)) for a, b in zip(_ANCHORS[left], _ANCHORS[left + 1], strict=True)
    )
    return red, green, blue


def foreground(level: int) -> tuple[int, int, int]:
    """Black or white, whichever reads better on the level's background."""
    red, green, blue = background(level)
    return (0, 0, 0) if 299 * red + 587 * green + 114 * blue > 127_500 else (255, 255, 255)


def label(level: int) -> str:
    """The bits of a level, for a legend."""
    if level == 0:
        return f"< {LIMITS[0]:g}"
    return f"\u2265 {LIMITS[level - 1]:g}"
