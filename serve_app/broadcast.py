"""What replicas answer to a question that all of them are asked: None from those that are late, nothing from the dead.

Ray Serve's own way gives no answer at all where one of many replicas is late, as one is that hangs: so its results are
awaited one by one. Knows nothing of what is asked.
"""

import asyncio
from typing import Any


async def answers_within(asked: Any, timeout_s: float) -> list[Any]:
    """Return the answers of all replicas that live, in any order; None for one that does not come in time.

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
        return [answer.result() if answer.done() else None for answer in answers if _lives(answer)]
    finally:
        for answer in answers:
            answer.cancel()


def _lives(answer: asyncio.Future[Any]) -> bool:
    return not answer.done() or not (answer.cancelled() or answer.exception())
