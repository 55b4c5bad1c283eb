"""Folders, captions, tables, archives and configurations that break naive readers: each with the captions that its
images have, or with what its error must say."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nasty_case import encoded, scene

PNG = encoded(scene(), "PNG")


@dataclass(frozen=True)
class Source:
    """Something that a person gives to LoRA Dataset Loader."""

    path: Path
    captions: dict[str, str] | None = None
    """By the images' names."""
    error: tuple[str, ...] = ()
    """All that the error says, the name of what is wrong among it."""


class Sources:
    """Writes them into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: list[Source] = []

    def place(self, name: str) -> Path:
        place = self.folder / name
        place.mkdir(parents=True)
        return place

    def add(self, path: Path, captions: dict[str, str] | None = None, *error: str) -> None:
        self.cases.append(Source(path, captions, error))


def sources(folder: Path) -> list[Source]:
    """All of them."""
    made = Sources(folder)
    for kind in (captions, folders, names, tables, archives, toml, yaml):
        kind(made)
    return made.cases


def pair(place: Path, name: str = "cat", caption: bytes = b"ohwx, a cat", extension: str = ".txt") -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.png").write_bytes(PNG)
    (place / f"{name}{extension}").write_bytes(caption)
    return place


def captions(made: Sources) -> None:
    """In encodings that editors of three systems write."""
    text = "ohwx, a café — “猫” 🐈"
    for name, content in {
        "utf8": text.encode(), "utf8 bom": text.encode("utf-8-sig"), "utf16 little": text.encode("utf-16"),
        "utf32": text.encode("utf-32"), "utf16 big": b"\xfe\xff" + text.encode("utf-16-be"),
        "crlf": "ohwx, a café —\r\n“猫” 🐈\r\n".encode(),
        "old mac": "ohwx, a café —\r“猫”\t 🐈".encode(), "spaces": f"  \n\n{text}  \n\n".encode(),
        "bom and lines": "\ufeffohwx, a café\n— “猫” 🐈".encode(),
    }.items():
        made.add(pair(made.place(f"caption {name}"), caption=content), {"cat.png": text})
    for name, content in {"latin1": "caf\xe9".encode("latin-1"), "binary": PNG, "cut utf16": b"\xff\xfea",
                          "lone surrogate": b"\xed\xa0\x80"}.items():
        made.add(pair(made.place(f"caption {name}"), caption=content), None, "cat.txt")
    for name, content in {"empty": b"", "blank": b" \n\t ", "only bom": b"\xef\xbb\xbf"}.items():
        made.add(pair(made.place(f"caption {name}"), caption=content), {"cat.png": ""})
    place = pair(made.place("caption folder"))
    (place / "cat.txt").unlink()
    (place / "cat.txt").mkdir()
    made.add(place, None, "cat.txt")
    made.add(pair(made.place("caption extension"), extension=".caption"), {"cat.png": "ohwx, a cat"})
    both = pair(pair(made.place("caption both")), caption=b"another", extension=".caption")
    made.add(both, {"cat.png": "ohwx, a cat"})
    long = "very " * 200_000 + "long"
    made.add(pair(made.place("caption long"), caption=long.encode()), {"cat.png": long})


def folders(made: Sources) -> None:
    made.add(made.place("empty"), None, "empty")
    made.add(made.folder / "nowhere", None, "nowhere", "does not exist")
    place = made.place("only text")
    (place / "cat.txt").write_text("a cat")
    made.add(place, None, "only text", "No images")
    loop = pair(made.place("loop"))
    (loop / "5_loop").symlink_to(loop, target_is_directory=True)
    (loop / "self").symlink_to(loop / "self")
    made.add(loop, {"cat.png": "ohwx, a cat"})
    dangling = pair(made.place("dangling"))
    (dangling / "gone.png").symlink_to(dangling / "nowhere.png")
    made.add(dangling, {"cat.png": "ohwx, a cat"})
    deep = pair(made.place("repeats"))
    pair(deep / "3_dog", "dog", b"ohwx, a dog")
    pair(deep / "0_off", "off", b"off")
    pair(deep / "notes", "no", b"no")
    pair(deep / "99999999999999999999_many", "many", b"many")
    made.add(deep, None, "99999999999999999999_many")
    other = pair(made.place("case"))
    (other / "DOG.PNG").write_bytes(PNG)
    (other / "DOG.txt").write_text("ohwx, a dog")
    made.add(other, {"cat.png": "ohwx, a cat", "DOG.PNG": "ohwx, a dog"})
    weights = pair(made.place("weights"))
    (weights / "weights.json").write_text('{"cat.png": "much"}')
    made.add(weights, None, "weights.json")


def names(made: Sources) -> None:
    """Of folders and of files, as far as the disk takes them."""
    for name in ("with spaces", "emoji 🐈‍⬛", "dot.", "two..", "quote's \"", "100%", "new\nline", "a" * 200, "#[1]*?",
                 "ünïcödé", "e\u0301", "-rf", "CON", "semi;colon", "{braces}", "\u202eright to left"):
        place = made.place(f"names/{name}")
        made.add(pair(place, name), {f"{name}.png": "ohwx, a cat"})
    broken = made.place("names/not utf8")
    for suffix in (b".png", b".txt"):
        Path(os.fsdecode(os.fsencode(broken) + b"/\xff\xfe" + suffix)).write_bytes(PNG if suffix == b".png" else b"x")
    made.add(broken, None, "not utf8", "a name that is not UTF-8")


def tables(made: Sources) -> None:
    def table(name: str, file: str, content: bytes, expected: dict[str, str] | None, *error: str) -> None:
        place = made.place(f"table {name}")
        (place / "cat.png").write_bytes(PNG)
        (place / file).write_bytes(content)
        made.add(place, expected, *error)

    row = {"file_name": "cat.png", "text": "ohwx, “a cat”; 1, 2"}
    good = {"cat.png": row["text"]}
    table("jsonl", "metadata.jsonl", json.dumps(row).encode(), good)
    table("jsonl bom", "metadata.jsonl", b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n\r\n",
          good)
    quoted = '"ohwx, “a cat”; 1, 2"'
    table("csv", "metadata.csv", f"file_name,text\ncat.png,{quoted}\n".encode(), good)
    table("csv excel", "metadata.csv", f"file_name;text\r\ncat.png;{quoted}\r\n".encode("utf-8-sig"), good)
    for name, file, content, what in (
        ("broken jsonl", "metadata.jsonl", b'{"file_name": "cat.png"', "metadata.jsonl"),
        ("list jsonl", "metadata.jsonl", b'["cat.png", "a cat"]', "metadata.jsonl"),
        ("list", "metadata.jsonl", b'{"file_name": "cat.png", "text": ["a"]}', "metadata.jsonl"),
        ("no text", "metadata.jsonl", b'{"file_name": "cat.png", "label": "a"}', "metadata.jsonl"),
        ("no name", "metadata.csv", b"name,text\ncat.png,a cat\n", "metadata.csv"),
        ("twice", "metadata.csv", b"file_name,text\ncat.png,a\ncat.png,b\n", "cat.png"),
        ("out", "metadata.csv", b"file_name,text\n../../etc/cat.png,a\n", "../../etc/cat.png"),
        ("absolute", "metadata.csv", b"file_name,text\n/etc/cat.png,a\n", "/etc/cat.png"),
        ("latin1", "metadata.csv", "file_name,text\ncat.png,caf\xe9\n".encode("latin-1"), "metadata.csv"),
        ("long name", "metadata.csv", f"file_name,text\n{'n' * 500}.png,a\n".encode(), "nnnn"),
        ("nul", "metadata.csv", b"file_name,text\ncat\0.png,a\n", "metadata.csv"),
        ("empty", "metadata.csv", b"", "metadata.csv"),
    ):
        table(name, file, content, None, what)


def archives(made: Sources) -> None:
    def archive(name: str, fill: Callable[[zipfile.ZipFile], None], expected: dict[str, str] | None,
                *error: str) -> Path:
        path = made.folder / f"{name}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            fill(file)
        made.add(path, expected, *error)
        return path

    def cat(file: zipfile.ZipFile, folder: str = "") -> None:
        file.writestr(f"{folder}cat.png", PNG)
        file.writestr(f"{folder}cat.txt", "ohwx, a cat")

    good = {"cat.png": "ohwx, a cat"}
    plain = archive("plain", cat, good)
    archive("in a folder", lambda z: cat(z, "my cats/"), good)
    archive("mac", lambda z: (cat(z), z.writestr("__MACOSX/._cat.png", b"junk"), z.writestr("._cat.png", b"junk")),
            good)
    archive("emoji", lambda z: cat(z, "🐈/"), good)
    for name, bad in {"slip": "../slipped.png", "root": "/slipped.png", "drive": "C:/slipped.png",
                      "backslash": "..\\slipped.png", "long": "n" * 500 + ".png"}.items():
        archive(f"zip {name}", lambda z, bad=bad: (cat(z), z.writestr(bad, PNG)), None, f"zip {name}.zip")
    archive("zip nothing", lambda z: None, None, "zip nothing")
    archive("zip readme", lambda z: z.writestr("readme.txt", "no pictures"), None, "No images")
    content = plain.read_bytes()
    for name, broken in {"cut": content[:-30], "empty": b"", "text": b"no zip at all", "flipped":
                         content.replace(PNG[40:60], PNG[40:59] + b"?") if PNG[40:60] in content else
                         content[:60] + bytes([content[60] ^ 255]) + content[61:]}.items():
        path = made.folder / f"zip {name}.zip"
        path.write_bytes(broken)
        made.add(path, None, f"zip {name}.zip")
    locked = bytearray(content)
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the bit that says "encrypted" in both headers
        at = locked.find(header)
        while at >= 0:
            locked[at + flags:at + flags + 2] = struct.pack("<H", 1)
            at = locked.find(header, at + 4)
    path = made.folder / "zip locked.zip"
    path.write_bytes(bytes(locked))
    made.add(path, None, "zip locked.zip")


def toml(made: Sources) -> None:
    cats = pair(made.place("cats of toml"))

    def config(name: str, content: str | bytes, expected: dict[str, str] | None, *error: str) -> None:
        path = made.folder / f"{name}.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        made.add(path, expected, *error)

    subset = f"[[datasets.subsets]]\nimage_dir = {str(cats)!r}\ncaption_extension = '.txt'\n"
    good = {"cat.png": "ohwx, a cat"}
    config("toml plain", f"[[datasets]]\nresolution = 64\n{subset}", good)
    config("toml bom", f"\ufeff[[datasets]]\nresolution = 64\n{subset}", good)
    for name, content, what in (
        ("unknown", f"[[datasets]]\nresolutoin = 64\n{subset}", "resolutoin"),
        ("unknown general", f"[general]\nshufle_caption = true\n[[datasets]]\n{subset}", "shufle_caption"),
        ("unknown subset", f"[[datasets]]\n{subset}num_repeat = 3\n", "num_repeat"),
        ("broken", "[[datasets]\n", "toml broken.toml"),
        ("nothing", "", "toml nothing.toml"),
        ("wrong type", f"[[datasets]]\nresolution = 'large'\n{subset}", "resolution"),
        ("negative", f"[[datasets]]\n{subset}num_repeats = -1\n", "num_repeats"),
        ("no folder", "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '/nowhere/at/all'\n", "/nowhere/at/all"),
        ("no image_dir", "[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2\n", "image_dir"),
        ("no subsets", "[[datasets]]\nresolution = 64\n", "toml no subsets.toml"),
        ("latin1", "# caf\xe9\n[[datasets]]\n".encode("latin-1"), "toml latin1.toml"),
        ("zero", f"[[datasets]]\nresolution = 0\n{subset}", "resolution"),
    ):
        config(f"toml {name}", content, None, what)


def yaml(made: Sources) -> None:
    cats = pair(made.place("cats of yaml"))
    good = {"cat.png": "ohwx, a cat"}

    def config(name: str, content: str, expected: dict[str, str] | None, *error: str, suffix: str = ".yaml") -> None:
        path = made.folder / f"{name}{suffix}"
        path.write_bytes(content.encode())
        made.add(path, expected, *error)

    block = {"folder_path": str(cats), "caption_ext": "txt", "resolution": [64]}
    config("yaml plain", f"config:\n  process:\n    - datasets:\n        - folder_path: {str(cats)!r}\n"
                         "          caption_ext: txt\n          resolution: [64]\n", good)
    config("json plain", json.dumps({"config": {"process": [{"datasets": [block]}]}}), good, suffix=".json")
    config("json list", json.dumps([block]), good, suffix=".json")
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True))
    for name, content, suffix, what in (
        ("yaml broken", "datasets: [", ".yaml", "yaml broken.yaml"),
        ("yaml tag", "datasets: !!python/object/apply:os.getcwd []\n", ".yaml", "yaml tag.yaml"),
        ("yaml bomb", bomb, ".yaml", "yaml bomb.yaml"),
        ("yaml deep", "[" * 20000, ".yaml", "yaml deep.yaml"),
        ("json deep", "[" * 200000, ".json", "json deep.json"),
        ("yaml unknown", f"datasets:\n  - folder_path: {str(cats)!r}\n    caption_extt: txt\n", ".yaml",
         "caption_extt"),
        ("yaml no folder", "datasets:\n  - caption_ext: txt\n", ".yaml", "folder_path"),
        ("json nothing", "{}", ".json", "json nothing.json"),
        ("json number", "5", ".json", "json number.json"),
    ):
        config(name, content, None, what, suffix=suffix)
    strange = made.folder / "strange.docx"
    strange.write_bytes(b"PK")
    made.add(strange, None, "strange.docx")
