"""Text on a node while it runs and after."""

from __future__ import annotations

from typing import Any

from .compat import io, ui


def shown(node: type[io.ComfyNode], text: str) -> Any:
    """Show text on the node that is running; returned is what goes into its output as `ui`, for the history.

    The node's schema must ask for `io.Hidden.unique_id`.
    """
    from server import PromptServer

    if getattr(PromptServer, "instance", None) is not None and node.hidden.unique_id:
        PromptServer.instance.send_progress_text(text, node.hidden.unique_id)
    return ui.PreviewText(text)
