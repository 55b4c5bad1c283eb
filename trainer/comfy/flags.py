"""Reads the flags that ComfyUI was started with, as far as they concern us."""

from __future__ import annotations

from comfy.cli_args import args


def allowed_origin() -> str | None:
    """Returns which other web pages may use this server: None for none, "*" for all, else the origin of one."""
    return args.enable_cors_header


def many_users() -> bool:
    """Returns whether each request names its user."""
    return args.multi_user
