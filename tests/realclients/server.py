"""The real server in front of the scripted model: in this process, or as `python -m tests.realclients.server`."""

import argparse
import asyncio
import json
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from garzone.server.app import build_app
from garzone.server.listener import open_listener
from tests.realclients.model import MODEL, ScriptedModel

# What differs from machine to machine, or is nobody's business, is left out of what is written down.
KEPT_HEADERS = ("content-type", "accept", "anthropic-version", "anthropic-beta", "x-stainless-lang", "user-agent")


class Recorder:
    """ASGI middleware that writes each request to a file of its own: method, path, headers, body."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self._app = app
        self._folder = folder
        self._count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        path = scope["path"] + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
        headers = {name.decode(): value.decode() for name, value in scope["headers"] if name.decode() in KEPT_HEADERS}
        self._count += 1
        file = self._folder / f"{self._count:03d}.json"

        async def receive_and_keep() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    record = {"method": scope["method"], "path": path, "headers": headers, "body": body.decode()}
                    file.write_text(json.dumps(record, ensure_ascii=False, indent=1))
            return message

        if scope["method"] in ("GET", "HEAD"):
            record = {"method": scope["method"], "path": path, "headers": headers, "body": ""}
            file.write_text(json.dumps(record, indent=1))
        await self._app(scope, receive_and_keep, send)


def app_of(model: ScriptedModel, record: Path | None = None) -> ASGIApp:
    app = build_app(model, model, model, embedder=model, default_model=MODEL.name)
    return Recorder(app, record) if record else app


async def _serve(app: ASGIApp, port: int) -> None:
    with open_listener("127.0.0.1", port) as listener:
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the scripted model; prints the port.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--record", type=Path, help="folder for the requests that come")
    arguments = parser.parse_args()
    if arguments.record:
        arguments.record.mkdir(parents=True, exist_ok=True)
    asyncio.run(_serve(app_of(ScriptedModel(), arguments.record), arguments.port))


if __name__ == "__main__":
    main()
