"""LiveLoRA's training engine. It knows no node, no HTTP and no ComfyUI: those reach it through `host.Host`."""
