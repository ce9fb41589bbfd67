"""The clients that are Python packages, each in a few real exchanges.

`python -m tests.realclients.python_clients NAME URL` drives one. A driver raises when an answer is not what it must be.
They run in processes of their own: litellm and LangChain take seconds to import, and read the environment when they do.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportAssignmentType=false, reportOptionalSubscript=false, reportGeneralTypeIssues=false
# pyright: reportOptionalIterable=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.realclients.model import CAPITAL, UNSCALED, vector_of

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ASK_SECRET = [{"role": "user", "content": "What is in secret.txt?"}]
SECRET = "SECRET-c0ffee00"
PARAMETERS = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
FUNCTION = {"name": "read_file", "description": "Reads a file.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def _same(one: object, two: object) -> None:
    assert one == two, f"{one!r} is not {two!r}"


def _close(one: list[float], text: str) -> None:
    assert all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(one, vector_of(text), strict=True)), one


def ollama(url: str) -> None:
    import ollama

    client = ollama.Client(host=url)
    _same(client.chat("scripted", QUESTION).message.content, CAPITAL)
    parts = list(client.chat("scripted", QUESTION, stream=True, keep_alive=60))
    _same("".join(part.message.content or "" for part in parts), CAPITAL)
    called = client.chat("scripted", ASK_SECRET, tools=[TOOL])
    (call,) = called.message.tool_calls or ()
    _same((call.function.name, dict(call.function.arguments)), ("read_file", {"path": "secret.txt"}))
    result = {"role": "tool", "content": SECRET, "tool_name": "read_file"}
    told = client.chat("scripted", [*ASK_SECRET, called.message, result], tools=[TOOL])
    _same(told.message.content, f"The secret is {SECRET}.")
    _same(json.loads(client.chat("scripted", QUESTION, format=SCHEMA).message.content or ""), {"city": "Paris"})
    _same(client.generate("scripted", "def add(a, b):\n    ", suffix="\n").response, "return a + b")
    _same(client.generate("scripted", "hi", stream=False).response, CAPITAL)
    _close(client.embed("scripted", ["a", "b"]).embeddings[1], "b")
    _close([number / UNSCALED for number in client.embeddings("scripted", "a").embedding], "a")
    _same([model.model for model in client.list().models], ["scripted:latest"])
    _same(client.show("scripted").capabilities, ["completion", "tools", "insert"])
    _same(len(client.ps().models), 1)
    logged = client.chat("scripted", QUESTION, logprobs=True, top_logprobs=2)
    _same((len(logged.logprobs), len(logged.logprobs[0].top_logprobs)), (5, 2))


def openai(url: str) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
    chat = client.chat.completions
    _same(chat.create(model="scripted", messages=QUESTION).choices[0].message.content, CAPITAL)
    with chat.create(
        model="scripted", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    _same("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), CAPITAL)
    assert chunks[-1].usage.completion_tokens
    called = chat.create(model="scripted", messages=ASK_SECRET, tools=[TOOL]).choices[0]
    _same(called.finish_reason, "tool_calls")
    (call,) = called.message.tool_calls
    _same((call.function.name, json.loads(call.function.arguments)), ("read_file", {"path": "secret.txt"}))
    result = {"role": "tool", "content": SECRET, "tool_call_id": call.id}
    told = chat.create(model="scripted", messages=[*ASK_SECRET, called.message, result], tools=[TOOL])
    _same(told.choices[0].message.content, f"The secret is {SECRET}.")
    with chat.stream(model="scripted", messages=ASK_SECRET, tools=[TOOL]) as events:
        streamed = events.get_final_completion().choices[0].message.tool_calls
    _same(streamed[0].function.name, "read_file")
    logged = chat.create(model="scripted", messages=QUESTION, logprobs=True, top_logprobs=2).choices[0].logprobs
    _same([token.token for token in logged.content][:2], ["Paris i", "s the c"])
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    formed = chat.create(model="scripted", messages=QUESTION, response_format=schema)
    _same(json.loads(formed.choices[0].message.content), {"city": "Paris"})
    _same(client.completions.create(model="scripted", prompt="def f():\n", suffix="\n").choices[0].text, "return a + b")
    parts = client.completions.create(model="scripted", prompt="hi", stream=True)
    _same("".join(part.choices[0].text for part in parts if part.choices), CAPITAL)
    _close(client.embeddings.create(model="scripted", input="a").data[0].embedding, "a")
    _close(client.embeddings.create(model="scripted", input=["a", "b"], encoding_format="float").data[1].embedding, "b")
    _same([model.id for model in client.models.list()], ["scripted:latest"])
    _openai_responses(client)


def _openai_responses(client: object) -> None:
    responses = client.responses  # pyright: ignore
    _same(responses.create(model="scripted", input="What is the capital of France?").output_text, CAPITAL)
    tool = {"type": "function", "strict": False, **FUNCTION}
    with responses.stream(
        model="scripted", input="What is in secret.txt?", tools=[tool], instructions="brief"
    ) as events:
        kinds = [event.type for event in events]
        final = events.get_final_response()
    assert kinds[0] == "response.created", kinds
    assert kinds[-1] == "response.completed", kinds
    _same([item.type for item in final.output], ["message", "function_call"])
    call = final.output[1]
    _same((call.name, json.loads(call.arguments)), ("read_file", {"path": "secret.txt"}))
    given = [{"role": "user", "content": "What is in secret.txt?"}, *(item.to_dict() for item in final.output)]
    given.append({"type": "function_call_output", "call_id": call.call_id, "output": SECRET})
    _same(responses.create(model="scripted", input=given, tools=[tool]).output_text, f"The secret is {SECRET}.")
    text = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}}
    formed = responses.create(model="scripted", input="Which city?", text=text)
    _same(json.loads(formed.output_text), {"city": "Paris"})


def anthropic(url: str) -> None:
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="any", max_retries=0)
    messages, asked = client.messages, {"model": "claude-sonnet-4-5", "max_tokens": 100}
    message = messages.create(messages=QUESTION, **asked)
    _same((message.content[0].text, message.stop_reason), (CAPITAL, "end_turn"))
    tool = {"name": "read_file", "description": "Reads a file.", "input_schema": PARAMETERS}
    with messages.stream(messages=ASK_SECRET, tools=[tool], system="brief", **asked) as stream:
        assert "".join(stream.text_stream) == "I will look.\n"
        called = stream.get_final_message()
    _same(called.stop_reason, "tool_use")
    use = called.content[1]
    _same((use.name, use.input), ("read_file", {"path": "secret.txt"}))
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": SECRET}]}
    turns = [*ASK_SECRET, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    _same(messages.create(messages=turns, tools=[tool], **asked).content[0].text, f"The secret is {SECRET}.")
    assert messages.count_tokens(model="scripted", messages=QUESTION).input_tokens > 5
    _same([model.id for model in client.models.list()], ["scripted:latest"])
    try:
        messages.create(model="nope", max_tokens=1, messages=QUESTION)
    except anthropic.NotFoundError as error:
        assert error.request_id
        assert error.request_id in json.dumps(error.body)
    else:
        raise AssertionError("a model that is not there answered")


def litellm(url: str) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch prices at import
    import litellm

    litellm.suppress_debug_info = True

    for model, base in (("ollama_chat/scripted", url), ("ollama/scripted", url), ("openai/scripted", f"{url}/v1")):
        given = {"model": model, "api_base": base, "api_key": "any"}
        _same(litellm.completion(messages=QUESTION, **given).choices[0].message.content, CAPITAL)
        parts = litellm.completion(messages=QUESTION, stream=True, **given)
        _same("".join(part.choices[0].delta.content or "" for part in parts), CAPITAL)
        if model != "ollama/scripted":  # which puts tools into the prompt
            called = litellm.completion(messages=ASK_SECRET, tools=[TOOL], **given).choices[0].message
            _same(json.loads(called.tool_calls[0].function.arguments), {"path": "secret.txt"})
    told = litellm.completion(model="anthropic/scripted", api_base=url, api_key="any", messages=QUESTION, max_tokens=50)
    _same(told.choices[0].message.content, CAPITAL)
    _close(litellm.embedding(model="ollama/scripted", input=["a"], api_base=url).data[0]["embedding"], "a")


def langchain_ollama(url: str) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_ollama import ChatOllama, OllamaEmbeddings

    chat = ChatOllama(model="scripted", base_url=url, temperature=0)
    _same(chat.invoke("What is the capital of France?").content, CAPITAL)
    _same("".join(str(part.content) for part in chat.stream("What is the capital of France?")), CAPITAL)
    bound = chat.bind_tools([TOOL])
    question = HumanMessage("What is in secret.txt?")
    called = bound.invoke([question])
    _same(called.tool_calls[0]["args"], {"path": "secret.txt"})
    result = ToolMessage(SECRET, tool_call_id=called.tool_calls[0]["id"])
    _same(bound.invoke([question, called, result]).content, f"The secret is {SECRET}.")
    _same(chat.with_structured_output(SCHEMA).invoke("Which city?"), {"city": "Paris"})
    _close(OllamaEmbeddings(model="scripted", base_url=url).embed_query("a"), "a")


def llm_ollama(url: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "OLLAMA_HOST": url, "LLM_USER_PATH": home}

        def llm(*arguments: str) -> str:
            command = [str(Path(sys.executable).with_name("llm")), *arguments]
            return subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=60).stdout

        assert "ollama/scripted" in llm("models")
        _same(llm("-m", "ollama/scripted", "What is the capital of France?").strip(), CAPITAL)
        function = f"def read_secret(path: str) -> str:\n    'Reads a file.'\n    return {SECRET!r} + path[:0]\n"
        assert f"The secret is {SECRET}." in llm(
            "-m", "ollama/scripted", "--functions", function, "What is in secret.txt?"
        )
        _same(
            json.loads(llm("-m", "ollama/scripted", "--schema", json.dumps(SCHEMA), "Which city?")), {"city": "Paris"}
        )


DRIVERS: dict[str, Callable[[str], None]] = {
    "ollama (Python)": ollama,
    "openai": openai,
    "anthropic": anthropic,
    "litellm": litellm,
    "langchain-ollama": langchain_ollama,
    "llm + llm-ollama": llm_ollama,
}


if __name__ == "__main__":
    DRIVERS[sys.argv[1]](sys.argv[2])
