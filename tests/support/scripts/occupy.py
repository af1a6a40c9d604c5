"""Keep a model's replica full for some seconds with calls of 0.3 seconds. Runs on the server's cluster."""

import asyncio
import sys

import numpy as np
import ray
from ray import serve
from ray.serve.exceptions import BackPressureError

from serve_app.messages import EmbedCall
from tests.support.plumbing import SLOW

# More calls than the replica takes at once.
CALLS = 24


async def occupy(application: str, model: str, seconds: float) -> None:
    """Make calls, each of which fills a batch."""
    handle = serve.get_deployment_handle(model, application)
    ids = np.full(60, SLOW, np.int32)
    call = EmbedCall(ids, np.array([60], np.int32), np.array([0], np.int32), "an-id")
    end = asyncio.get_running_loop().time() + seconds

    async def repeat() -> None:
        while asyncio.get_running_loop().time() < end:
            try:
                await handle.embed.remote(call)
            except BackPressureError:  # this handle's queue is bounded as well
                await asyncio.sleep(0.02)

    await asyncio.gather(*(repeat() for _ in range(CALLS)))


ray.init(address="auto", log_to_driver=False, logging_level="error")
asyncio.run(occupy(sys.argv[1], sys.argv[2], float(sys.argv[3])))
