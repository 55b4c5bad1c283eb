"""Turns tensors into pictures, and pictures into tensors.

Shapes: h w pixels."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_image(pixels: Tensor) -> Image.Image:
    """Turns (h, w), (h, w, 3) or (h, w, 4) in 0…1 into a picture of 8 bits a channel. Clamps what is out of range."""
    return Image.fromarray((pixels.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def to_tensor(image: Image.Image) -> Tensor:
    """Turns a picture of 8 bits a channel into (h, w) or (h, w, channels) in 0…1, fp32."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
