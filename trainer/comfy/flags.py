"""What ComfyUI was started with, as far as it concerns us."""

from __future__ import annotations

from comfy.cli_args import args


def allowed_origin() -> str | None:
    """Which other web pages may use this server: None for none, "*" for all, else one of them."""
    return args.enable_cors_header


def many_users() -> bool:
    """Whether each request names its user."""
    return args.multi_user
