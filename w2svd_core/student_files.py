"""What a run's student is called on disk: for those that write it, and for those that look for it."""

from __future__ import annotations

FOLDER = "student"
NATIVE, DIFFUSERS = "student_comfyui.safetensors", "student_diffusers.safetensors"
FULL_NATIVE, FULL_FOLDER = "student_model_comfyui.safetensors", "transformer"
ABOUT = "w2svd.json"  # the metadata of a native file's header, beside the folder's config.json
