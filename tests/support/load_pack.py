"""Loads the pack as ComfyUI does, and prints what came with it, as JSON.

`nodes`: for each, the ids in its schema, the parameters of its `execute`, and whether it takes others as well.
`imported`: the modules that were imported by it."""

import asyncio
import importlib.util
import inspect
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path.cwd()))

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import utils.install_util  # noqa: E402, F401, I001  before ComfyUI puts its comfy/utils.py in front, as its main.py does
import server  # noqa: E402

loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
server.PromptServer(loop)
before = {*sys.modules}
spec = importlib.util.spec_from_file_location("livelora_pack", ROOT / "__init__.py",
                                              submodule_search_locations=[str(ROOT)])
pack = importlib.util.module_from_spec(spec)
sys.modules["livelora_pack"] = pack
spec.loader.exec_module(pack)

extension, found = loop.run_until_complete(pack.comfy_entrypoint()), {}
for node in loop.run_until_complete(extension.get_node_list()):
    parameters = inspect.signature(node.execute).parameters
    takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    found[node.__name__] = ([i.id for i in node.GET_SCHEMA().inputs], named, takes_more)
print(json.dumps({"nodes": found, "imported": sorted({*sys.modules} - before)}))
