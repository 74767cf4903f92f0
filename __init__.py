"""The ComfyUI extension; outside ComfyUI this file is empty, and the headless part is `w2svd_core`."""

try:
    import comfy_api  # noqa: F401
except ImportError:
    pass
else:
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
