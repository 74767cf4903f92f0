"""What ComfyUI asks for: the list of all nodes. A file whose nodes can't be made takes no other file with it."""

from __future__ import annotations

import logging
from importlib import import_module

from .compat import ComfyExtension, io

MODULES = ("portraits", "data", "encoded", "training", "lora", "sampling", "evaluation")
LOG = logging.getLogger(__name__)


class W2SVDExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return all_nodes()


async def comfy_entrypoint() -> W2SVDExtension:
    """Called by ComfyUI when it loads the pack."""
    return W2SVDExtension()


def all_nodes() -> list[type[io.ComfyNode]]:
    """The nodes of every module that works here; for each one that does not, a line in the log says why."""
    return [node for module in MODULES for node in nodes_of(module)]


def nodes_of(module: str) -> list[type[io.ComfyNode]]:
    """The nodes of one module, each with a schema that can be made; none, and a line in the log, otherwise."""
    try:
        found: list[type[io.ComfyNode]] = import_module(f".{module}", __package__).NODES
        for node in found:
            node.GET_SCHEMA()  # what ComfyUI calls, which checks more than define_schema
    except Exception as error:  # whatever is broken there, the other modules go on
        reason = " ".join(str(error).split()) or type(error).__name__
        LOG.warning("W2SVD: the nodes of nodes/%s.py are off (%s); pip install -r requirements.txt", module, reason)
        return []
    return found
