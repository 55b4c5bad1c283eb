"""Speaks to ComfyUI. No other folder imports `comfy`, `folder_paths` or `comfy_execution`."""
