"""Aspect-ratio buckets: picture sizes of about the same area, so that nothing is squeezed and little is cut off."""

from __future__ import annotations

import math

MAX_ASPECT = 4.0
"""Longer pictures are cropped to this ratio of the long edge to the short one."""


def step_for(resolution: int) -> int:
    """Bucket edges are multiples of this: 64 pixels, less for small trainings, never below the model's 16."""
    return max(16, min(64, resolution // 128 * 16))


def buckets(resolution: int) -> list[tuple[int, int]]:
    """All (width, height) whose edges are multiples of the step and whose area is at most resolution²."""
    step, area = step_for(resolution), resolution**2
    found = []
    for width in range(step, int(resolution * math.sqrt(MAX_ASPECT)) + 1, step):
        height = min(area // width, int(width * MAX_ASPECT)) // step * step
        if height and max(width, height) <= MAX_ASPECT * min(width, height):
            found.append((width, height))
    return found


def choose(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest to that of `size` (width, height); the larger one of equals."""
    ratio = math.log(size[0] / size[1])
    return min(buckets(resolution), key=lambda b: (round(abs(math.log(b[0] / b[1]) - ratio), 6), -b[0] * b[1]))
