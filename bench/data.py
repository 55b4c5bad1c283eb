"""Seconds and memory of reading a dataset: LiveLoRA beside pillow alone.

    python dev.py bench data [--pictures 1000] [--rounds 3] [--resolution 1024]

JPEGs of 2 megapixels in six shapes, of noise that weighs what a photo does. Pillow alone decodes them and cuts them to
their buckets: with Lanczos, and with its faster bicubic filter, which is LiveLoRA's. LiveLoRA finds and hashes them,
decodes each to see whether it is whole, chooses its bucket, reads its caption, and then decodes and cuts it as the
trainer does. Both have a thread for each core; they take turns in one process; figures are medians. Memory is the peak
of the resident set of fresh processes. 300 encoded captions are put into the cache, too, and handed on as a training
gets them. Last comes what ComfyUI asks at each queueing, whether something has changed: with 100,000 pictures and
captions in the folder, and with 120,000 other files in folders below it."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[1]
SHAPES = [(1632, 1224), (1224, 1632), (1414, 1414), (1888, 1062), (1062, 1888), (1733, 1155)]
THREADS = os.cpu_count() or 1


def livelora() -> None:
    """The checkout as a package, without ComfyUI."""
    package = types.ModuleType("livelora")
    package.__path__ = [str(ROOT)]
    sys.modules["livelora"] = package


def photo(number: int) -> Image.Image:
    """Octaves of noise, each a fifth stronger than the next finer one: its JPEG weighs what a photo does."""
    draw, (width, height) = np.random.default_rng(number), SHAPES[number % len(SHAPES)]
    total = np.full((height, width, 3), 127, np.float32)
    for octave in range(9):
        small = draw.integers(0, 256, (-(-height >> octave), -(-width >> octave), 3), dtype=np.uint8)
        layer = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(layer, np.float32) - 127) * (1.2**octave / 12)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def make(folder: Path, count: int) -> None:
    """The pictures with their captions."""
    def one(number: int) -> None:
        photo(number).save(folder / f"{number:04}.jpg", quality=90)
        (folder / f"{number:04}.txt").write_text(f"ohwx, picture {number}")
    each(one, range(count))


def each(work: Callable, over: Iterable) -> None:
    """Done in threads; results are let go at once."""
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(work, over):
            pass


def start(folder: Path, scratch: Path, resolution: int):
    """The dataset."""
    from livelora.trainer.data.scan import Cut, scan

    return scan(folder, cut=Cut(resolution=resolution), trigger_word="ohwx", scratch=scratch)


def ours(folder: Path, scratch: Path, resolution: int) -> tuple[float, float]:
    """Seconds until all are found, hashed, checked and have their buckets; and until they are cut as well."""
    from livelora.trainer.data.pictures import images

    began = time.perf_counter()
    dataset = start(folder, scratch, resolution)
    checked = time.perf_counter() - began
    each(lambda item: images.load(item.path, item.bucket), dataset.items)
    return checked, time.perf_counter() - began


def pillow(sizes: dict[Path, tuple[int, int]], resample: Image.Resampling) -> float:
    """Seconds to decode pictures and to cut each to its size."""
    def one(path: Path) -> None:
        with Image.open(path) as image:
            ImageOps.fit(image, sizes[path], resample)
    began = time.perf_counter()
    each(one, sizes)
    return time.perf_counter() - began


def second_start(folder: Path, scratch: Path, resolution: int) -> float:
    """Seconds where the pictures are known."""
    began = time.perf_counter()
    start(folder, scratch, resolution)
    return time.perf_counter() - began


def compare(folder: Path, rounds: int, resolution: int) -> None:
    """Prints the medians of `rounds` and their ratio."""
    names = ["pillow, Lanczos", "pillow, bicubic", "livelora: checked", "livelora: cut too", "second start"]
    times: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        sizes = {i.path: i.bucket for i in start(folder, Path(scratch), resolution).items}
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as scratch:
            times["pillow, Lanczos"].append(pillow(sizes, Image.Resampling.LANCZOS))
            times["pillow, bicubic"].append(pillow(sizes, Image.Resampling.BICUBIC))
            checked, all_of_it = ours(folder, Path(scratch), resolution)
            times["livelora: checked"].append(checked)
            times["livelora: cut too"].append(all_of_it)
            times["second start"].append(second_start(folder, Path(scratch), resolution))
        print(f"round {number + 1}:", ", ".join(f"{name} {found[-1]:.2f} s" for name, found in times.items()))
    medians = {name: statistics.median(found) for name, found in times.items()}
    megabytes = sum(path.stat().st_size for path in sizes) / len(sizes) / 1e6
    print(f"\n{len(sizes)} JPEGs of {megabytes:.2f} MB each at {resolution}², {THREADS} threads")
    print(f"{'':17}   seconds  ÷ Lanczos  ÷ bicubic")
    for name, seconds in medians.items():
        ratios = [seconds / medians[f"pillow, {filter}"] for filter in ("Lanczos", "bicubic")]
        print(f"{name:17} {seconds:9.2f} {ratios[0]:10.2f} {ratios[1]:10.2f}")


def memory(folder: Path, count: int, resolution: int) -> float:
    """The peak of the resident set in MB of a fresh process that reads `count` of the pictures."""
    with tempfile.TemporaryDirectory() as fewer:
        for path in sorted(folder.iterdir())[:2 * count]:
            os.link(path, Path(fewer) / path.name)
        command = [sys.executable, __file__, "--work", fewer, "--resolution", str(resolution)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def work(folder: Path, resolution: int) -> None:
    """What `memory` runs."""
    with tempfile.TemporaryDirectory() as scratch:
        ours(folder, Path(scratch), resolution)
    print(status("VmHWM"))


def encodings(count: int) -> tuple[float, float]:
    """MB of encoded captions as FLUX.1 has them that a training is handed, and of anonymous memory that they take."""
    import torch
    from livelora.trainer.data.cache import Cache, key

    with tempfile.TemporaryDirectory() as scratch:
        cache, before = Cache(Path(scratch)), status("RssAnon")
        for i in range(count):
            cache.keep(key(i), {"cond": torch.randn(1, 256, 4096)})
        handed = [cache.get(key(i)) for i in range(count)]  # when all are encoded, as the trainer does
        return sum(value["cond"].nbytes for value in handed if value) / 2**20, status("RssAnon") - before


def changes(rounds: int, files: int = 100_000, below: int = 120_000) -> tuple[float, float]:
    """Seconds to tell whether something has changed: in a folder of so many files, and in one with two files and so
    many others below."""
    from livelora.trainer.data.places import fingerprint

    def found(folder: Path) -> float:
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            fingerprint(folder)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    with tempfile.TemporaryDirectory() as flat, tempfile.TemporaryDirectory() as deep:
        others = [Path(deep, f"other_{number}") for number in range(12)]
        for folder in others:
            folder.mkdir()
        for place, count in ((Path(flat), files), (Path(deep), 2), *((folder, below // 12) for folder in others)):
            for number in range(count // 2):
                (place / f"{number:06}.png").touch()
                (place / f"{number:06}.txt").touch()
        return found(Path(flat)), found(Path(deep))


def status(name: str) -> float:
    """MB, as Linux tells it of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    livelora()
    if options.work:
        return work(options.work, options.resolution)
    print("{:.0f} MB of encoded captions take {:.0f} MB of a training's memory".format(*encodings(300)))
    with tempfile.TemporaryDirectory() as place:
        make(Path(place), options.pictures)
        compare(Path(place), options.rounds, options.resolution)
        for count in (options.pictures // 10, options.pictures * 3 // 10, options.pictures):
            print(f"peak memory with {count} pictures: {memory(Path(place), count, options.resolution):.0f} MB")
    print("whether something has changed is found in {:.2f} s among 100,000 files, in {:.4f} s beside 120,000 others"
          .format(*changes(options.rounds)))


if __name__ == "__main__":
    main()
