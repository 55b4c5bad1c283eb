"""Chooses aspect-ratio buckets: picture sizes of about the same area, so that nothing is squeezed and little cut off.

The algorithm is that of sd-scripts (kohya-ss/sd-scripts, `BucketManager.select_bucket`), so that its configurations
give the sizes they give there."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

MAX_ASPECT = 4
"""The largest ratio of the long edge to the short one, if LiveLoRA chooses the buckets. Longer pictures are cropped to
it."""
LATENT = 8
"""The pixels along an edge of a latent pixel, in every family that can be trained."""
FINEST = 2 * LATENT
"""The finest step of an edge in pixels: models take only multiples of it. It is the same for all models, because
datasets are read before a model is wired in."""
Size = tuple[int, int]
"""A width and a height in pixels."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Chooses for each picture a size of about the area of `resolution`."""

    resolution: Size
    step: int = 64
    """The step of the edges in pixels: they are multiples of it."""
    smallest: int = 256
    """The shortest edge in pixels. It counts only where pictures may be enlarged."""
    largest: int = 1024
    """The longest edge in pixels. It counts only where pictures may be enlarged."""
    upscale: bool = True
    """Whether a picture may be enlarged."""
    enabled: bool = True
    """Whether sizes are chosen. False: every picture is cut to `resolution`."""
    max_aspect: float = math.inf
    """The ratio that longer pictures are cropped to. It counts only where pictures may not be enlarged."""

    def choose(self, size: Size) -> Size:
        """Returns the (width, height) at which a picture of `size` is trained: the one that is nearest in shape, or if
        it may not be enlarged, its own size rounded down.

        If rounding down leaves nothing, as of a picture of 50 × 300 pixels in steps of 64, the steps are 16 and the
        picture is cropped to 1:4. Edges are never below 16."""
        if not self.enabled:
            return self.resolution
        if self.upscale:
            return self._nearest(size)
        return self._own(size, self.step, self.max_aspect) or self._smallest(size)

    def sizes(self) -> list[Size]:
        """Returns all sizes for pictures that may be enlarged, in order."""
        return _sizes(self)

    def _nearest(self, size: Size) -> Size:
        aspect = size[0] / size[1]
        return min(self.sizes(), key=lambda s: abs(s[0] / s[1] - aspect))

    def _own(self, size: Size, step: int, max_aspect: float) -> Size | None:
        """Returns the picture's own size, scaled down to the area of `resolution` if it is larger, and rounded down.

        Returns None if nothing would be left of an edge."""
        width, height = _cropped(size, max_aspect)
        if width * height > self.resolution[0] * self.resolution[1]:
            width, height = self._scaled(width / height, step)
        bucket = width // step * step, height // step * step
        return bucket if min(bucket) else None

    def _scaled(self, aspect: float, step: int) -> Size:
        """Returns a size of the area of `resolution`. Of its edges it rounds the one that leaves the shape closer to
        `aspect`. Returns (0, 0) if nothing would be left of an edge."""
        wide = math.sqrt(self.resolution[0] * self.resolution[1] * aspect)
        width, height = _rounded(wide, step), _rounded(wide / aspect, step)
        height_for, width_for = _rounded(width / aspect, step), _rounded(height * aspect, step)
        if not height or not height_for:
            return 0, 0
        if abs(width / height_for - aspect) < abs(width_for / height - aspect):
            return width, int(width / aspect + 0.5)
        return int(height * aspect + 0.5), height

    def _smallest(self, size: Size) -> Size:
        """Returns the size for a picture of which sd-scripts' steps leave nothing."""
        width, height = _cropped(size, MAX_ASPECT)
        return self._own((max(width, FINEST), max(height, FINEST)), FINEST, MAX_ASPECT) or (FINEST, FINEST)


@functools.lru_cache(maxsize=64)
def _sizes(buckets: Buckets) -> list[Size]:
    """Returns all sizes once and not again for each picture: a configuration may ask for thousands."""
    area, step = buckets.resolution[0] * buckets.resolution[1], buckets.step
    square = int(math.sqrt(area)) // step * step
    found = {(square, square)}
    for width in range(buckets.smallest, min(buckets.largest, area // buckets.smallest) + 1, step):
        height = min(buckets.largest, area // width // step * step)
        if height >= buckets.smallest:
            found |= {(width, height), (height, width)}
    return sorted(found)


def _rounded(edge: float, step: int) -> int:
    return int(edge + 0.5) // step * step


def _cropped(size: Size, max_aspect: float) -> Size:
    width, height = size
    return int(min(width, max(1, height) * max_aspect)), int(min(height, max(1, width) * max_aspect))


def step_for(resolution: int) -> int:
    """Returns the step of bucket edges in pixels: 64, less for small resolutions, never below 16."""
    return max(FINEST, min(64, resolution // 128 * FINEST))


def for_resolution(resolution: int, upscale: bool) -> Buckets:
    """Returns the buckets of the Dataset Loader. With `upscale` their edges are between half and twice the
    `resolution`, else the sizes are the pictures' own. In both cases they are at most 1:4."""
    step = step_for(resolution)
    smallest, largest = -(-resolution // (2 * step)) * step, 2 * resolution // step * step
    return Buckets((resolution, resolution), step, smallest, largest, upscale, max_aspect=MAX_ASPECT)
