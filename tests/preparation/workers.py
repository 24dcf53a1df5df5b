"""What processes of a test do; a process imports nothing else for it."""

from __future__ import annotations

import os


def doubled(item: int) -> int:
    """Twice the item; but three is refused, and four ends the process."""
    if item == 3:
        raise ValueError("three is no number")
    if item == 4:
        os._exit(9)
    return 2 * item
