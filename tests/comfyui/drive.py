"""Drive a running ComfyUI: queue API workflows and follow them, open UI workflows in a real browser."""

from __future__ import annotations

import asyncio
import json
import struct
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMAGE, TEXT, IMAGE_WITH_METADATA = 1, 3, 4  # kinds of binary messages
SIZE = (3400, 1900)  # px of the page: nodes far away are drawn without their texts

Prompt = Mapping[str, Any]
Event = Callable[[str, Any], None]


@dataclass
class Run:
    """What became of a queued workflow.

    Attributes:
        status: success, error, interrupted, invalid (refused when it was queued) or timeout.
        error: what the server says of a failed node: node_id, node_type, exception_message and more.
        node_errors: by node id, of a workflow that was refused.
        outputs: what the history keeps, by node id.
    """

    status: str = ""
    prompt_id: str = ""
    error: Mapping[str, Any] = field(default_factory=dict)
    node_errors: Mapping[str, Any] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    progress: dict[str, tuple[float, float]] = field(default_factory=dict)
    previews: int = 0
    texts: list[tuple[str, str]] = field(default_factory=list)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def message(self) -> str:
        """The sentence on the node that failed."""
        return str(self.error.get("exception_message", "")).strip()

    def take(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take a message of the websocket."""
        if data.get("prompt_id") not in (None, self.prompt_id):
            return
        match kind:
            case "progress":
                self.progress[str(data["node"])] = (data["value"], data["max"])
            case "progress_state":
                self.progress |= {key: (state["value"], state["max"]) for key, state in data["nodes"].items()}
            case "executed":
                self.executed.append(data["node"])
            case "execution_cached":
                self.cached = list(data["nodes"])
            case "execution_error":
                self.status, self.error = "error", data
            case "execution_interrupted":
                self.status, self.error = "interrupted", data
            case "execution_success":
                self.status = "success"

    def take_bytes(self, message: bytes) -> None:
        """Take a binary message: a preview picture, or a text for a node."""
        (kind,) = struct.unpack(">I", message[:4])
        if kind == TEXT:
            (length,) = struct.unpack(">I", message[4:8])
            self.texts.append((message[8 : 8 + length].decode(), message[8 + length :].decode(errors="replace")))
        elif kind in (IMAGE, IMAGE_WITH_METADATA):
            self.previews += 1


def run_prompt(
    server: str,
    prompt: Prompt,
    timeout: float = 600,
    interrupt_when: Callable[[Run], bool] | None = None,
) -> Run:
    """Queue a workflow in API format and follow it to its end.

    Args:
        server: such as http://127.0.0.1:8188.
        timeout: seconds.
        interrupt_when: asked after each message; the first True presses Cancel.
    """
    return finished(_follow(server, prompt, timeout, interrupt_when))


async def _follow(server: str, prompt: Prompt, timeout: float, interrupt_when: Any) -> Run:
    import aiohttp

    run, start, client = Run(), time.monotonic(), uuid.uuid4().hex
    socket = f"{server.replace('http', 'ws', 1)}/ws?clientId={client}"
    async with aiohttp.ClientSession(trust_env=False) as session, session.ws_connect(socket, max_msg_size=0) as ws:
        await ws.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        async with session.post(f"{server}/prompt", json={"prompt": prompt, "client_id": client}) as answer:
            body = await answer.json(content_type=None)
            if answer.status != 200:
                run.status, run.error = "invalid", body.get("error") or {}
                run.node_errors = body.get("node_errors") or {}
                return run
            run.prompt_id = body["prompt_id"]
        asked = False
        while not run.status:
            if time.monotonic() - start > timeout:
                run.status = "timeout"
            if interrupt_when is not None and not asked and interrupt_when(run):
                asked = True
                await session.post(f"{server}/interrupt")
            try:
                message = await ws.receive(timeout=0.1)
            except TimeoutError:
                continue
            if message.type is aiohttp.WSMsgType.BINARY:
                run.take_bytes(message.data)
            elif message.type is aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                run.take(event["type"], event["data"])
            else:
                run.status, run.error = "error", {"exception_message": "the server closed the connection"}
        for _ in range(30):  # the history is written after the last message
            history = await (await session.get(f"{server}/history/{run.prompt_id}")).json()
            if run.prompt_id in history:
                run.outputs = history[run.prompt_id]["outputs"]
                break
            await asyncio.sleep(0.1)
    run.seconds = time.monotonic() - start
    return run


def get(server: str, path: str) -> Any:
    """What the server answers to a GET, as JSON where it is."""
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{server}{path}", timeout=30) as answer:
        body = answer.read()
        return json.loads(body) if "json" in answer.headers.get("content-type", "") else body


def finished(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine, wherever this thread is."""
    return asyncio.run(coroutine)


# ---- the browser

REPORT = """() => {
  const app = window.app || window.comfyAPI.app.app;
  const plain = ['Note', 'MarkdownNote', 'Reroute', 'PrimitiveNode'];
  const known = window.LiteGraph.registered_node_types;
  const found = [];
  const walk = (graph, path) => {
    for (const node of graph?._nodes ?? graph?.nodes ?? []) {
      found.push({
        id: path + node.id, type: node.type, title: node.title, errors: !!node.has_errors,
        registered: node.type in known || !!node.subgraph || plain.includes(node.type),
        size: Array.from(node.size), pos: Array.from(node.pos),
        widgets: (node.widgets ?? []).map(w => [w.name, w.label ?? null, typeof w.value === 'object' ? null : w.value]),
      });
      if (node.subgraph) walk(node.subgraph, path + node.id + ':');
    }
  };
  walk(app.graph, '');
  return found;
}"""
READY = """() => window.app && window.app.graph && window.LiteGraph
  && Object.keys(window.LiteGraph.registered_node_types).length > 100"""
FIT = """() => { const a = window.app || window.comfyAPI.app.app;
  try { a.extensionManager?.command?.execute?.('Comfy.Canvas.FitView'); } catch (error) {} }"""
QUEUE = """async (limit) => {
  const api = window.app.api || window.comfyAPI.api.api;
  const end = new Promise(done => {
    for (const type of ['execution_success', 'execution_error', 'execution_interrupted'])
      api.addEventListener(type, event => done({type, detail: event.detail}));
  });
  await window.app.queuePrompt(0, 1);
  return await Promise.race([end, new Promise(done => setTimeout(() => done({type: 'timeout'}), limit))]);
}"""


@dataclass
class Page:
    """What a browser shows of a workflow.

    Attributes:
        nodes: id, type, title, registered, errors, size, pos and widgets of each.
        faults: exceptions that the page threw after the workflow was opened.
        alerts: what it told its user.
        api: the workflow as the page would queue it.
        queued: how the queue ended, where it was pressed.
    """

    nodes: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)
    api: dict[str, Any] = field(default_factory=dict)
    queued: dict[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Types of nodes that the page does not know."""
        return sorted({node["type"] for node in self.nodes if not node["registered"]})

    @property
    def red(self) -> list[str]:
        """Ids of nodes in an error state."""
        return [node["id"] for node in self.nodes if node["errors"]]


def open_workflow(
    server: str,
    workflow: Mapping[str, Any],
    browser: str,
    shot: Path | None = None,
    queue: float = 0,
    locale: str = "en",
) -> Page:
    """Open a workflow in UI format in Chromium, as loading its file does.

    Args:
        browser: Chromium's executable.
        shot: where a screenshot goes.
        queue: seconds that pressing Run may take; 0 = it is not pressed.
        locale: language of the page.
    """
    return finished(_open(server, workflow, browser, shot, queue, locale))


async def _open(server: str, workflow: Any, browser: str, shot: Path | None, queue: float, locale: str) -> Page:
    from playwright.async_api import async_playwright

    found = Page()
    quiet = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--no-proxy-server")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        async with async_playwright() as playwright:
            context = await playwright.chromium.launch_persistent_context(
                profile,
                executable_path=browser,
                viewport={"width": SIZE[0], "height": SIZE[1]},
                args=list(quiet),
                locale={"zh": "zh-CN"}.get(locale, "en-US"),
            )
            page = context.pages[0] if context.pages else await context.new_page()
            await page.route("**/*", _stay_here)
            await page.goto(server, wait_until="domcontentloaded")
            await page.wait_for_function(READY, timeout=120_000)
            await page.wait_for_timeout(1500)
            for _ in range(3):  # what greets a first visitor
                await page.keyboard.press("Escape")
                await page.wait_for_timeout(200)
            page.on("pageerror", lambda error: found.faults.append(str(error)[:500]))
            await page.evaluate("w => (window.app || window.comfyAPI.app.app).loadGraphData(w)", workflow)
            await page.wait_for_timeout(1500)
            found.alerts = await page.locator(".p-toast-message-text").all_inner_texts()
            found.api = await page.evaluate("async () => (await window.app.graphToPrompt()).output")
            if queue:
                found.queued = await page.evaluate(QUEUE, queue * 1000)
                await page.wait_for_timeout(1500)
            found.nodes = await page.evaluate(REPORT)
            await page.evaluate(FIT)
            await page.wait_for_timeout(1000)
            if shot is not None:
                shot.parent.mkdir(parents=True, exist_ok=True)
                await page.screenshot(path=shot)
            await context.close()
    return found


async def _stay_here(route: Any) -> None:
    """Let nothing but this machine's server and the page's own data be asked."""
    ours = "127.0.0.1" in route.request.url or route.request.url.startswith(("data:", "blob:"))
    await (route.continue_() if ours else route.abort())
