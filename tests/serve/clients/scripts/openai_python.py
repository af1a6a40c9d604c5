"""Call the server with openai-python: the standard and Azure clients, 64 concurrent requests, and errors.

For each error, the script records every try, so that the test can check which errors the SDK retries.
"""

import asyncio
import json
import sys
from typing import Any

import openai

URL, MODEL, ABSENT = sys.argv[1:4]
TEXTS = json.loads(sys.argv[4])
OPTIONS: Any = {"api_key": "sk-any", "timeout": 60}
ERRORS: dict[str, dict[str, Any]] = {
    "empty": {"input": ""},
    "empty item": {"input": ["a", ""]},
    "dimensions": {"input": "a", "dimensions": 100_000},
    "unknown model": {"input": "a", "model": "no/such"},
    "too many": {"input": ["a"] * 2049},
    "too long": {"input": ["a", "word " * 9000]},
    "no embedding model": {"input": "a", "model": "reranker"},
}


def rows(response: Any) -> list[list[float]]:
    """Return the vectors and check that the items are in order."""
    assert [item.index for item in response.data] == list(range(len(response.data)))
    return [list(item.embedding) for item in response.data]


def error_of(key: str = "sk-any", **fields: Any) -> dict[str, Any]:
    """Return the exception that a request raises, with the status of each try."""
    tries: list[int] = []
    hooks: Any = {"response": [lambda answer: tries.append(answer.status_code)]}
    options = {
        **OPTIONS,
        "api_key": key,
        "http_client": openai.DefaultHttpxClient(event_hooks=hooks),
    }
    client = openai.OpenAI(base_url=f"{URL}/v1", **options)
    try:
        client.embeddings.create(**{"model": MODEL, **fields})
    except openai.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "code": error.code,
            "param": error.param,
            "says": error.body.get("message") if isinstance(error.body, dict) else None,
            "request_id": error.request_id,
            "tries": tries,
        }
    return {}


async def at_once() -> list[list[float]]:
    """Send 64 concurrent requests with one text each."""
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", **OPTIONS) as client:
        texts = [TEXTS[number % len(TEXTS)] for number in range(64)]
        answers = await asyncio.gather(
            *(client.embeddings.create(model=MODEL, input=text) for text in texts)
        )
    return [rows(answer)[0] for answer in answers]


def main() -> None:
    """Print the vectors, errors and metadata as JSON."""
    client = openai.OpenAI(base_url=f"{URL}/v1", **OPTIONS)
    slashed = openai.OpenAI(base_url=f"{URL}//v1/", **OPTIONS)
    azure = openai.AzureOpenAI(azure_endpoint=URL, api_version="2024-10-21", **OPTIONS)
    raw = client.embeddings.with_raw_response.create(model=MODEL, input=TEXTS)
    vectors = {
        "default": rows(client.embeddings.create(model=MODEL, input=TEXTS)),
        "float": rows(client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")),
        "raw": rows(raw.parse()),
        "azure": rows(azure.embeddings.create(model=MODEL, input=TEXTS)),
        "two slashes": rows(slashed.embeddings.create(model=MODEL, input=TEXTS)),
        "at once": asyncio.run(at_once()),
    }
    errors = {name: error_of(**fields) for name, fields in ERRORS.items()}
    errors["wrong key"] = error_of("sk-other", input="a")
    errors["no replica"] = error_of(input="a", model=ABSENT)
    print(json.dumps({
        "version": openai.__version__,
        "vectors": vectors,
        "request_id": raw.headers["x-request-id"],
        "models": [model.id for model in client.models.list()],
        "model": client.models.retrieve(MODEL).id,
        "usage": client.embeddings.create(model=MODEL, input="a text").usage.total_tokens,
        "errors": errors,
    }))  # fmt: skip


main()
