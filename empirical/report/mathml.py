"""Formulas for a page without scripts: the statements' LaTeX as MathML, which browsers lay out themselves."""

from __future__ import annotations

from typing import Literal

from latex2mathml.converter import convert


def mathml(latex: str, display: Literal["inline", "block"] = "inline") -> str:
    """A `<math>` element.

    Args:
        latex: A formula without dollar signs.
        display: In the line, or on a line of its own.
    """
    return convert(latex, display=display)
