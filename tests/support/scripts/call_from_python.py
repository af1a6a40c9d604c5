"""Call the server through a `DeploymentHandle` and print the results as JSON. Runs on the server's cluster."""

import asyncio
import json
import sys

import ray
from ray import serve

from serve_app.errors import BatchSizeError, InvalidRequestError, ServiceError, TokenizationError


async def main() -> None:
    """Make three valid calls and three that fail."""
    handle = serve.get_app_handle("embeddings")
    result = await handle.embed.remote(["test input", "test input 2"], model=None, normalize=True)
    short = await handle.embed.remote("test input", dimensions=8)
    raw = await handle.embed.remote(("test input",), normalize=False)
    print(
        json.dumps(
            {
                "embeddings": result.embeddings.tolist(),
                "dtype": str(result.embeddings.dtype),
                "prompt_tokens": result.prompt_tokens,
                "model": result.model,
                "short": short.embeddings.tolist(),
                "raw": raw.embeddings.tolist(),
                "errors": [
                    await failure(handle, InvalidRequestError, ["fine", ""]),
                    await failure(handle, TokenizationError, "word " * 300),
                    await failure(handle, BatchSizeError, ["text"] * 2049),
                ],
            }
        )
    )


async def failure(
    handle: serve.handle.DeploymentHandle, kind: type[ServiceError], inputs: object
) -> list[object]:
    """Return the error of a call that must fail."""
    try:
        await handle.embed.remote(inputs)
    except kind as error:
        return [kind.__name__, error.status, error.code, error.param, error.message]
    sys.exit(f"{kind.__name__} was not raised")


ray.init(address="auto", log_to_driver=False, logging_level="error")
asyncio.run(main())
