"""LiveLoRA's training engine. Only its folder `comfy` knows ComfyUI; the rest reaches it through `model.host.Host`. No
part of it knows nodes or HTTP."""
