"""ComfyUI, spoken to in one place: the only folder that imports `comfy`, `folder_paths` and `comfy_execution`."""
