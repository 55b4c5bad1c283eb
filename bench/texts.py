"""Writes what follows from the nodes' own schemas, locales/en/nodeDefs.json and docs/recipe.md: `python dev.py bench
texts` after changing one."""

from __future__ import annotations

import json
import tempfile
from itertools import groupby
from pathlib import Path

from comfyui import ROOT, Server

LOCALES = ROOT / "locales" / "en" / "nodeDefs.json"
RECIPE = ROOT / "docs" / "recipe.md"
HEAD = """# The recipe

Every setting of LoRA Train, in the order of the node and under its titles. [The guide](guide.md) tells how to choose
them. A setting that another one makes meaningless is not shown and must stay at its default; LoRA Train says so before
anything runs.
"""
TABLE = """
| setting | usual | allowed | what it does |
| --- | --- | --- | --- |
"""


def inputs(info: dict) -> dict[str, dict]:
    """Every input's options by name; those inside a dynamic combo as `combo.name`."""
    found = {}
    for name, (kind, options) in {**info["input"].get("required", {}), **info["input"].get("optional", {})}.items():
        found[name] = options
        if kind == "COMFY_DYNAMICCOMBO_V3":
            for option in options["options"]:
                found |= {f"{name}.{inner}": given for inner, (_, given) in option["inputs"]["required"].items()}
    return found


def definitions(infos: dict[str, dict]) -> dict[str, dict]:
    """`/object_info` as the frontend's i18n wants it: a dynamic combo's inner inputs have an underscore for the dot."""
    found = {}
    for node, info in sorted(infos.items()):
        names = {name.replace(".", "_"): {"name": name.split(".")[-1], "tooltip": options["tooltip"]}
                 for name, options in inputs(info).items()}
        outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
        found[node] = {"display_name": info["display_name"], "description": info["description"],
                       **({"inputs": names} if names else {}),
                       "outputs": {str(i): {"name": name, "tooltip": tip} for i, (name, tip) in enumerate(outputs)}}
    return found


def recipe(train: dict) -> str:
    """The page about LoRA Train's settings, from its entry in `/object_info`."""
    settings = [(name, options) for name, options in inputs(train).items() if "default" in options]
    page = HEAD
    for title, group in groupby(settings, key=lambda entry: entry[1].get("livelora", {}).get("group", "")):
        page += (f"\n## {title}\n" if title else "") + TABLE + "".join(_row(name, options) for name, options in group)
    return page


def _row(name: str, options: dict) -> str:
    usual = "by preset" if name.startswith("preset.") else _plain(options["default"])
    allowed = "on, off" if isinstance(options["default"], bool) else "text"
    if "options" in options:
        allowed = ", ".join(options["options"])
    elif "max" in options:
        allowed = f"{_plain(options['min'])} to {_plain(options['max'])}"
    tooltip = options["tooltip"].replace("|", r"\|")
    return f"| `{name.removeprefix('preset.')}` | {usual} | {allowed} | {tooltip} |\n"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        infos = {name: info for name, info in server.get("/object_info").items() if name.startswith("LiveLora")}
    LOCALES.write_text(json.dumps(definitions(infos), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    RECIPE.write_text(recipe(infos["LiveLoraTrain"]), encoding="utf-8")
    print(f"{len(infos)} nodes in {LOCALES}, the recipe in {RECIPE}")


if __name__ == "__main__":
    main()
