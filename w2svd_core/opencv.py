"""OpenCV, imported only where it is needed."""

from __future__ import annotations

from types import ModuleType

from .errors import UserError


def import_cv2() -> ModuleType:
    """OpenCV, imported late.

    Raises:
        UserError: it, or a system library that it needs, is missing.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"OpenCV could not be loaded ({error}); run: pip install opencv-python-headless "
            "(with opencv-python instead, the system also needs libGL, on Debian and Ubuntu the packages "
            "libgl1 and libglib2.0-0)"
        ) from error
    return cv2
