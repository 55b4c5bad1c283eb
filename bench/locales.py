"""Writes locales/en/nodeDefs.json from the nodes' own schemas: `python dev.py bench locales` after changing one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from comfyui import ROOT, Server

PATH = ROOT / "locales" / "en" / "nodeDefs.json"


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


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        infos = {name: info for name, info in server.get("/object_info").items() if name.startswith("LiveLora")}
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(json.dumps(definitions(infos), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(infos)} nodes in {PATH}")


if __name__ == "__main__":
    main()
