"""What replicas answer to a question that all of them are asked, without those that are late or cannot answer.

Ray Serve's own way gives no answer at all where one of many replicas is late, as one is that hangs: so its results are
awaited one by one. Knows nothing of what is asked.
"""

import asyncio
from typing import Any


async def answers_within(asked: Any, timeout_s: float) -> list[Any]:
    """Return the answers that come in time, in any order.

    Args:
        asked: what a `DeploymentHandle.broadcast` returned.
        timeout_s: for all of it, in seconds.

    Raises:
        TimeoutError: it is not even known in time which replicas there are.
        RayServeException: there is no deployment to ask.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    async with asyncio.timeout_at(until):
        results = await asked._fetch_replica_results_async()  # no public way to each of them
    if not results:
        return []
    answers = [asyncio.ensure_future(result.get_async()) for result in results]
    try:
        await asyncio.wait(answers, timeout=until - loop.time())
        return [answer.result() for answer in answers if _is_there(answer)]
    finally:
        for answer in answers:
            answer.cancel()


def _is_there(answer: asyncio.Future[Any]) -> bool:
    return answer.done() and not answer.cancelled() and answer.exception() is None
