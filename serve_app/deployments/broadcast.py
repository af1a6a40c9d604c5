"""Call a method on every replica of a deployment.

Ray Serve's own `broadcast` returns no result at all if a single replica is late, for example
because it hangs. This module therefore awaits the result of each replica separately. It does not
depend on the method that it calls.
"""

import asyncio
from typing import Any

from grpc import RpcError
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException


async def ask_all(handle: Any, method: str, *args: object, timeout_s: float) -> list[Any]:
    """Return the answers of all live replicas, in any order.

    The answer of a replica that is late is None. A replica whose call fails is left out. The result
    is empty if the list of replicas does not arrive in time or if the deployment cannot be called.

    Args:
        handle: Ray Serve's `DeploymentHandle`.
        method: the name of the method to call on each replica.
        args: the method's positional arguments.
        timeout_s: deadline for the whole broadcast, in seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    try:
        async with asyncio.timeout_at(deadline):
            response = handle.broadcast(method, *args)
            # This method is private. Ray Serve has no public way to get the individual results.
            results = await response._fetch_replica_results_async()
    except (TimeoutError, RayError, RayServeException, RpcError):
        return []
    if not results:
        return []
    answers = [asyncio.ensure_future(result.get_async()) for result in results]
    try:
        await asyncio.wait(answers, timeout=deadline - loop.time())
        live = [answer for answer in answers if not _has_failed(answer)]
        return [answer.result() if answer.done() else None for answer in live]
    finally:
        for answer in answers:
            answer.cancel()


def _has_failed(answer: asyncio.Future[Any]) -> bool:
    if not answer.done():
        return False
    return answer.cancelled() or answer.exception() is not None
