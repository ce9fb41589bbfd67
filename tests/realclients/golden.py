"""Recorded requests of real clients as golden files, and what becomes of them when they are sent again.

`python -m tests.realclients --record DIR` records; `python -m tests.realclients.golden DIR` shortens what was recorded
to what matters (no client's prompts are ours to keep), sends it to a server, and writes down how each request is read.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, cast

import httpx2

from garzone.core.generation import GenerateRequest
from tests.realclients.model import ScriptedModel
from tests.realclients.server import app_of
from tests.server.conftest import running

FOLDER = Path(__file__).parents[1] / "golden" / "wire"
LONGEST = 72
_PATHS = re.compile(r"/(?:tmp|root|home|work|private|var)/[^\s\"'<>,:;)]*")
_HASHES = re.compile(r"[0-9a-f]{64}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def shortened(value: Any) -> Any:
    """The same shape, with long texts cut and nothing of the machine it was recorded on."""
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [shortened(item) for item in cast("list[Any]", value)]
    if not isinstance(value, str):
        return value
    text = _HASHES.sub("0", _PATHS.sub("/project", value))
    return text if len(text) <= LONGEST else f"{text[:48]}… ({len(value)} characters)"


def reading(request: GenerateRequest) -> dict[str, Any]:
    """How a request was understood, in short."""
    sampling = request.sampling
    read: dict[str, Any] = {
        "model": request.model,
        "messages": [
            f"{message.role.value}: {len(message.text)} characters"
            + (f", thinks {len(message.thinking)}" if message.thinking else "")
            + "".join(f", calls {call.name}({', '.join(call.arguments)})" for call in message.tool_calls)
            + (f", result of {message.tool_name or message.tool_call_id}" if message.role.value == "tool" else "")
            for message in request.messages
        ],
        "tools": [tool.name for tool in request.tools],
        "sampling": [sampling.temperature, sampling.top_p, sampling.max_tokens, list(sampling.stop)],
    }
    for name in ("prompt", "suffix", "num_ctx", "keep_alive_s", "think", "truncate", "shift", "logprobs"):
        if (value := getattr(request, name)) is not None:
            read[name] = value
    if request.output_schema is not None:
        read["output_schema"] = dict(request.output_schema)
    return read


def replayed(url: str, model: ScriptedModel, record: dict[str, Any]) -> dict[str, Any]:
    """The status of the answer, its type, and how the request was read."""
    num_before = len(model.requests)
    body = json.dumps(record["body"], ensure_ascii=False).encode() if record["body"] is not None else b""
    headers = {"user-agent": "", **record["headers"]}
    response = httpx2.request(record["method"], url + record["path"], content=body, headers=headers, timeout=30)
    outcome = {"status": response.status_code, "type": response.headers.get("content-type", "").split(";")[0]}
    if model.requests[num_before:]:
        outcome["reading"] = reading(model.requests[-1])
    return outcome


def main(recorded: Path) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = ScriptedModel()
    with running(app_of(model)) as url:
        for client in sorted(recorded.iterdir()):
            records: dict[str, dict[str, Any]] = {}
            for file in sorted(client.glob("*.json")):
                record = json.loads(file.read_text())
                record["body"] = shortened(json.loads(record["body"])) if record["body"] else None
                shape = f"{record['method']} {record['path']} {json.dumps(record['body'], sort_keys=True)}"
                records.setdefault(shape, record)
            golden = [{**record, **replayed(url, model, record)} for record in records.values()]
            text = json.dumps(golden, ensure_ascii=False, indent=1) + "\n"
            (FOLDER / f"{re.sub('[^a-z0-9]+', '-', client.name.lower())}.json").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
