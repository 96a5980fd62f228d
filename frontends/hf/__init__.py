"""Transformers models, in memory or in a folder, as IRX programs."""

from __future__ import annotations

from irx.frontends.hf.capture import capture, is_model

__all__ = ["capture", "is_model"]
