"""Which share of a mixture the next draw comes from, as arithmetic on the draw's number alone."""

from collections.abc import Sequence
from fractions import Fraction


class Mixture:
    """Deals the draws 0, 1, 2, ... to shares in proportion to their weights, evenly spaced and without memory.

    Draw i goes to the first share exactly when floor(p * (i + 1)) > floor(p * i), where p is the first share's part of
    the total weight; what is left is dealt to the remaining shares by the same rule. So after any number of draws a
    share's count is off by less than one for each share dealt before it, plus one, however long the run. (grain deals
    mixtures of its own datasets in a similar way; this is the same with grain and without.)
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        assert weights, "a mixture has at least one share"
        assert all(weight > 0 for weight in weights), "weights are positive"
        self._parts = [weight / sum(weights[number:]) for number, weight in enumerate(weights)]

    def __call__(self, draw: int) -> tuple[int, int]:
        """The share that draw number `draw` comes from, and how many of the draws before it did."""
        for share, part in enumerate(self._parts):
            before = draw * part.numerator // part.denominator
            if (draw + 1) * part.numerator // part.denominator > before:
                return share, before
            draw -= before
        raise AssertionError("the last share takes every draw that reaches it")
