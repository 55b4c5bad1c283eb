"""Lists the settings of a dataset in an ai-toolkit configuration (ostris/ai-toolkit, toolkit/config_modules.py,
`DatasetConfig`), by whether they matter here."""

from __future__ import annotations

from typing import Any

FOLLOWED = ("folder_path", "dataset_path", "default_caption", "trigger_word", "caption_ext", "caption_type",
            "resolution", "num_repeats", "shuffle_tokens", "keep_tokens", "token_dropout_rate", "caption_dropout_rate",
            "flip_x", "random_crop", "square_crop", "buckets", "is_reg", "alpha_mask", "mask_path", "loss_multiplier",
            "cache_text_embeddings")
REFUSED: dict[str, Any] = {"type": "image", "num_frames": 1, "auto_frame_count": False, "invert_mask": False,
                           "poi": None}
"""Settings that are refused, because without them something else would be trained. Each has the value that changes
nothing."""
PASSED_OVER: dict[str, Any] = {
    "random_triggers": [], "random_scale": False, "scale": 1, "prior_reg": False, "network_weight": 1, "flip_y": False,
    "augments": [], "augmentations": [], "control_path": "", "control_path_1": "", "control_path_2": "",
    "control_path_3": "", "control_from_same_folder": False, "inpaint_path": "", "unconditional_path": "",
    "use_short_captions": False, "standardize_images": False, "clip_image_path": "",
    "clip_image_from_same_folder": False, "clip_image_augmentations": [], "replacements": [], "extra_values": [],
    "controls": [], "do_i2v": False, "do_audio": False, "mask_min_value": 0,
}
"""Settings that are not followed. A sentence in the report says so. Each has the value that changes nothing."""
WITHOUT_EFFECT = (
    "batch_size", "bucket_tolerance", "cache_latents", "cache_latents_to_disk", "cache_tensors_to_disk",
    "cache_clip_vision_to_disk", "load_image_when_caching_latents", "cache_latents_num_workers", "num_workers",
    "prefetch_factor", "fast_image_size", "debug", "shrink_video_to_frames", "fps", "trim_auto_frame_count_tail",
    "audio_preserve_pitch", "audio_normalize", "replay_transforms", "full_size_control_images",
    "control_transparent_color", "num_controls_from_same_folder", "random_triggers_max", "guidance_type",
    "shuffle_augmentations", "clip_image_shuffle_augmentations", "diff_output_preservation",
    "diff_output_preservation_class")
"""Settings that have no effect here. LiveLoRA decides itself what is cached and how much is read at once, and the
others are about what is passed over."""
KNOWN = (*FOLLOWED, *REFUSED, *PASSED_OVER, *WITHOUT_EFFECT)
