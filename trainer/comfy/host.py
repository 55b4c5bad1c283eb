"""Makes a `model.host.Host` of the model, CLIP and VAE that are wired into a train node.

Shapes: B images, C latent channels, H W latent rows and columns, h w pixels.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_base
import comfy.model_management as mm
import comfy.sd
import comfyui_version
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..lora.formats import write
from ..model.host import Sampler, Text
from ..model.memory import Memory, Size
from ..model.speed import matmul_rate
from ..model.transfer import moved
from ..model.view import build_view
from .families import FAMILIES, family_of
from .sampling import draw, is_loaded
from .text import by_length, encode_text, side_by_side
from .tokens import counter
from .vae import encode_images
from .weights import blank, fetch

VERSION = comfyui_version.__version__
LOADS = 3
"""How often loading is tried while somebody else changes what is loaded."""
EVERYTHING = 1e30


class ComfyHost:
    """Lets training use a model that ComfyUI has loaded. Nothing of the live model is ever changed."""

    def __init__(self, patcher: ModelPatcher, clip: comfy.sd.CLIP, vae: comfy.sd.VAE) -> None:
        """Raises ValueError if the model cannot be trained or the encoders do not fit it. Touches no weights."""
        self.family = family_of(patcher, clip, vae)
        self._patcher, self._clip, self._vae = patcher, clip, vae
        self._base: comfy.model_base.BaseModel = patcher.model
        self._live: Any = patcher.model.diffusion_model
        self.architecture = self.family.architecture(self._live)
        self.device: torch.device = patcher.load_device
        self.dtype: torch.dtype = self._base.get_dtype_inference()
        self._encoders: tuple[str, str] | None = None

    def fingerprint(self) -> str:
        """Tells apart transformers and what is patched on them. Takes a second for a large model."""
        return fingerprint(self._patcher)

    def image_fingerprint(self) -> str:
        """Tells apart VAEs, the family's scaling, and devices and versions of ComfyUI, on which rounding depends."""
        return self._encoders_now()[0]

    def text_fingerprint(self, text: str) -> str:
        """Tells apart CLIPs, what was set on them, devices and versions of ComfyUI. It is empty if the text names an
        embedding, which is a file that may change."""
        return "" if "embedding:" in text else self._encoders_now()[1]

    def _encoders_now(self) -> tuple[str, str]:
        if not self._encoders:
            vae, clip = self._vae, self._clip
            settings = repr([clip.layer_idx, clip.tokenizer_options])
            self._encoders = (
                " ".join([fingerprint(vae.patcher), self.family.name, str(vae.vae_dtype), vae.device.type, VERSION]),
                " ".join([fingerprint(clip.patcher), settings, clip.patcher.load_device.type, VERSION]))
        return self._encoders

    def memory(self) -> Memory:
        """Returns what ComfyUI would find free on the device after it has unloaded every model. On the CPU the weights
        are there already, and nothing is fetched from elsewhere."""
        weights = self._patcher.model_size()
        free: Any = mm.get_free_memory(self.device)
        largest = mm.NUM_STREAMS * max((p.nbytes for p in self._live.parameters()), default=0)
        if self.device.type == "cpu":
            return Memory(available=free + weights, weights=weights, largest=largest)
        loaded = sum(model.model_loaded_memory() for model in mm.current_loaded_models if model.device == self.device)
        reserved = mm.extra_reserved_memory()
        return Memory(available=int(free + loaded - reserved), weights=weights, streams=True, largest=largest,
                      beside=int(mm.minimum_inference_memory() - reserved))

    def latent_size(self, width: int, height: int) -> Size:
        """Returns the shape (C, H, W) of the latents of a picture of so many pixels."""
        scale: Any = self._vae.downscale_ratio
        return self._base.latent_format.latent_channels, height // scale, width // scale

    def blank_text(self, tokens: int) -> Text:
        """Returns an encoded caption of so many tokens, without values."""
        return self.family.blank_text(self._live, tokens)

    def peak(self) -> int | None:
        """Returns what PyTorch counted on a CUDA device since the last call."""
        if self.device.type != "cuda":
            return None
        most = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return most

    def matmul_rate(self) -> float | None:
        return matmul_rate(self.device, self.dtype)

    def free(self) -> None:
        """Gives memory that PyTorch keeps for later back to the device."""
        gc.collect()
        mm.soft_empty_cache()

    def clear(self) -> None:
        """Unloads every model from the device, as "Unload Models" does."""
        _patiently(lambda: mm.free_memory(EVERYTHING, self.device))
        self.free()

    def load(self, room: int) -> None:
        """Loads the wired model as a prompt would, and leaves `room` bytes of the device free. Raises RuntimeError if
        ComfyUI loads it with other patches than its own."""
        _patiently(lambda: mm.load_models_gpu([self._patcher], memory_required=room))
        if mm.MIN_WEIGHT_MEMORY_RATIO:
            self._keep_free(room)
        if self._base.current_weight_patches_uuid != self._patcher.patches_uuid:
            raise RuntimeError("ComfyUI loaded the model with other patches than those wired into LoRA Train. "
                               "Queue the workflow again.")

    def _keep_free(self, room: int) -> None:
        """Takes weights off the device until there is room. On cards that are not NVIDIA's, ComfyUI fills at least 40 %
        of what is free with weights, whatever room it is asked for (0.20 to 0.30)."""
        free: Any = mm.get_free_memory(self.device)
        missing = room + mm.extra_reserved_memory() - free
        if missing > 0 and self.device.type != "cpu":
            with torch.inference_mode():
                self._patcher.partially_unload(self._patcher.offload_device, missing)

    def view(self, adapter_dtype: torch.dtype) -> nn.Module:
        """Returns a training view of the live transformer."""
        return build_view(self._live, fetch, torch.zeros(1, device=self.device, dtype=adapter_dtype))

    def blank(self, adapter_dtype: torch.dtype, *, streamed: bool) -> nn.Module:
        """Returns a view without memory, on PyTorch's device for tensors without values. Its weights are made anew for
        each use if `fetch` would make them, all of them if they are `streamed`."""
        return build_view(self._live, partial(blank, streamed), torch.zeros(1, device="meta", dtype=adapter_dtype))

    def encode_images(self, images: Tensor) -> Tensor:
        """Encodes images (B, h, w, 3) and returns latents (B, C, H, W), scaled as the transformer expects them."""
        return self._base.process_latent_in(encode_images(self._vae, images))

    def given_latents(self, latents: Tensor) -> Tensor:
        """Scales latents (C, H, W), as a LATENT holds them. Raises ValueError if they come from another kind of VAE."""
        channels = self._base.latent_format.latent_channels
        if latents.shape[0] != channels:
            raise ValueError(f"The dataset's latents have {latents.shape[0]} channels, and {self.family.name} works "
                             f"with {channels}. Encode the images with the VAE that belongs to the model.")
        return self._base.process_latent_in(latents[None])[0]

    def given_text(self, text: Text) -> Text:
        """Returns the text as a CONDITIONING holds it. Raises ValueError if it comes from other text encoders."""
        if problem := self.family.text_problem(self._live, text):
            raise ValueError(problem)
        return text

    def count_tokens(self, text: str) -> int:
        """Returns how many tokens a text has, as the report counts them."""
        return counter(self._clip)[0](text)

    def encode_text(self, text: str) -> Text:
        """Returns what CLIPTextEncode would give, on the CPU."""
        return encode_text(self._clip, text)

    def predict(self, view: nn.Module, noisy: Tensor, sigmas: Tensor, texts: list[Text], guidance: float) -> Tensor:
        """Runs one forward for each text length in the batch, because captions are never padded to each other."""
        groups = by_length(texts)
        if len(groups) == 1:
            return self._forward(view, noisy, sigmas, texts, guidance)
        parts: list[Tensor] = [noisy] * len(texts)
        for indices in groups:
            latents, levels = (torch.stack([whole[i] for i in indices]) for whole in (noisy, sigmas))
            pred = self._forward(view, latents, levels, [texts[i] for i in indices], guidance)
            for place, index in enumerate(indices):
                parts[index] = pred[place]
        return torch.stack(parts)

    def _forward(self, view: nn.Module, noisy: Tensor, sigmas: Tensor, texts: list[Text], guidance: float) -> Tensor:
        """Calls the transformer as BaseModel._apply_model does."""
        conditions = self._base.extra_conds(noise=noisy, device=self.device, guidance=guidance,
                                            **side_by_side(texts, self.family.text_parts, self.device))
        size = {"batch_size": len(texts), "device": self.device}
        values = {name: condition.process_cond(**size).cond for name, condition in conditions.items()}
        values = {n: moved(v, self.device).to(self.dtype) if v.is_floating_point() else v for n, v in values.items()}
        context = values.pop("c_crossattn")
        pred = view(noisy.to(self.dtype), sigmas.float(), context=context,
                    transformer_options=self.family.options(view), **values)
        return pred.float()

    def undisturbed(self) -> bool:
        """Returns whether the wired model is still loaded with its own patches. "Unload models" and an out-of-memory
        error elsewhere take it away without the lease."""
        return is_loaded(self._patcher)

    def sampler(self, lora: dict[str, Tensor], strength: float) -> Sampler:
        """Returns a function that draws as KSampler does, on the wired model with the LoRA applied by ComfyUI's own
        loader."""
        with torch.inference_mode():
            patched = with_lora(self._patcher, lora, strength)

        return partial(draw, patched, self._vae)

    def hand_back_interrupt(self) -> None:
        """Sets ComfyUI's interrupt flag again, which was cleared when it stopped our work."""
        mm.interrupt_current_processing(True)


def _patiently(change: Callable[[], Any]) -> None:
    """Changes what is loaded, as a prompt would."""
    for attempt in range(LOADS):
        try:
            with torch.inference_mode():
                change()
            return
        except (TypeError, AttributeError, IndexError, ValueError):
            # "Unload models" came at the same time: ComfyUI's list of loaded models has no lock (0.20 to 0.30)
            if attempt == LOADS - 1:
                raise


def fingerprint(patcher: ModelPatcher) -> str:
    """Returns a hash of the start of every weight, unpatched, and of the start of every patch."""
    digest = hashlib.sha256()
    for key, value in patcher.model.named_parameters():
        unpatched = patcher.backup.get(key)
        weight = value if unpatched is None else unpatched.weight
        digest.update(f"{key} {tuple(value.shape)}".encode() + _start(weight))
    for key, patches in sorted(patcher.patches.items(), key=lambda entry: str(entry[0])):
        for strength, patch, *_ in patches:
            digest.update(f"{key} {strength}".encode() + _parts(patch))
    return digest.hexdigest()


def _parts(patch: Any) -> bytes:
    """Returns bytes that tell a weight patch apart. A patch is an adapter with `weights`, a tuple such as
    ("diff", (tensor,)), or a tensor; the bytes come from its tensors and numbers."""
    if torch.is_tensor(patch):
        return _start(patch)
    if isinstance(patch, (int, float, str)):
        return repr(patch).encode()
    return b"".join(map(_parts, getattr(patch, "weights", patch if isinstance(patch, (tuple, list)) else ())))


def _start(tensor: Tensor) -> bytes:
    """Returns the first bytes of a tensor, quantized or not."""
    raw = getattr(tensor, "_qdata", tensor)
    return raw.detach().reshape(-1)[:64].contiguous().view(torch.uint8).cpu().numpy().tobytes()


def with_lora(patcher: ModelPatcher, lora: dict[str, Tensor], strength: float = 1.0) -> ModelPatcher:
    """Returns a clone of the model with a LoRA applied by ComfyUI's own loader. The wired model stays as it is."""
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, write(lora, "ComfyUI", FAMILIES), strength, 0.0)
    assert patched is not None, "it is None only if the model is"
    return patched
