"""Markdown tables, read back."""

import re


def table(text, first):
    """Cells of the body of the one Markdown table whose first column is headed `first`."""
    (body,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()]
