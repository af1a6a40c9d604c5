"""What all replicas of a deployment answer to a question: None from one that is late, nothing from one that is dead.

Ray Serve's own way gives no answer at all where one of many replicas is late, as one is that hangs: so its results are
awaited one by one. Knows nothing of what is asked.
"""

import asyncio
from typing import Any

from grpc import RpcError
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException


async def ask_all(handle: Any, method: str, *args: object, timeout_s: float) -> list[Any]:
    """Return the answers of all replicas that live, in any order; None for each that does not come in time.

    There are none where it is not known in time which replicas there are, or where the deployment cannot be asked.

    Args:
        handle: Ray Serve's `DeploymentHandle`.
        method: of the replicas.
        args: what it is called with.
        timeout_s: for all of it, in seconds.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    try:
        async with asyncio.timeout_at(until):
            asked = handle.broadcast(method, *args)
            results = await asked._fetch_replica_results_async()  # no public way to each of them
    except (TimeoutError, RayError, RayServeException, RpcError):
        return []
    if not results:
        return []
    answers = [asyncio.ensure_future(result.get_async()) for result in results]
    try:
        await asyncio.wait(answers, timeout=until - loop.time())
        return [answer.result() if answer.done() else None for answer in answers if _lives(answer)]
    finally:
        for answer in answers:
            answer.cancel()


def _lives(answer: asyncio.Future[Any]) -> bool:
    return not answer.done() or not (answer.cancelled() or answer.exception())
