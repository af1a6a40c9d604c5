"""The workloads: who sends what, how many at a time. Data, and the bodies that it stands for.

Knows nothing of servers or clocks.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.prose import Prose

SEED = 20
SHORT = 12  # tokens
_MEDIUM, _MEDIAN, _SPREAD, _LEAST, _MOST = 32, 40, 0.8, 6, 256
LARGE_TOKENS = 2048 * _MEDIUM  # of one request of the workload `large`


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of load.

    Attributes:
        name: what it is called in tables and files, and what ONLY takes.
        title: what a reader of the table reads.
        clients: connections, each with one request under way at any time.
        inputs: texts in a request.
        distinct: requests that differ; then they begin anew.
        length: draws the tokens of one text, special tokens included.
        background: texts in each request of other clients, which are not counted but only in the way.
        background_clients: how many of these.
        is_slow: a request takes so long that few fit a measurement: parts of requests have to be counted.
        sleeping: it is for models that sleep, and not for those that compute.
    """

    name: str
    title: str
    clients: int
    inputs: int
    distinct: int
    length: Callable[[random.Random], int]
    background: int = 0
    background_clients: int = 1
    is_slow: bool = False
    sleeping: bool = False

    @property
    def in_flight(self) -> int:
        """Texts that the server has to work on at any time."""
        return self.clients * self.inputs


@dataclass(frozen=True, slots=True)
class Requests:
    """A workload's texts, by request, the same as bodies, and what the client in the background sends."""

    workload: Workload
    texts: Sequence[Sequence[str]]
    bodies: Sequence[bytes]
    background: Sequence[bytes] = ()


def _constant(tokens: int, _: random.Random) -> int:
    return tokens


def log_normal(generator: random.Random) -> int:
    """Draw around a median of 40 tokens, as lengths of search texts lie; 6 to 256."""
    drawn = round(_MEDIAN * generator.lognormvariate(0, _SPREAD))
    return min(max(drawn, _LEAST), _MOST)


WORKLOADS = (
    Workload("short", "64 clients, one 12-token text each", 64, 1, 2048, partial(_constant, SHORT)),
    Workload(
        "mixed",
        "64 clients, one text of 6 to 256 tokens each",
        64,
        1,
        1024,
        log_normal,
        is_slow=True,
    ),
    Workload(
        "many",
        "4 clients, 32 texts of 32 tokens a request",
        4,
        32,
        48,
        partial(_constant, _MEDIUM),
        is_slow=True,
    ),
    Workload("one", "1 client, one 12-token text", 1, 1, 512, partial(_constant, SHORT)),
    Workload(
        "large",
        "1 client, 2,048 texts of 32 tokens a request",
        1,
        2048,
        2,
        partial(_constant, _MEDIUM),
        is_slow=True,
    ),
    Workload(
        "beside",
        "1 client, one 12-token text, while another sends 2,048 of 32 tokens",
        1,
        1,
        128,
        partial(_constant, SHORT),
        background=2048,
        is_slow=True,
    ),
    Workload(
        "lanes",
        "1 client, one 12-token text, while 8 others send 256 of 32 tokens",
        1,
        1,
        128,
        partial(_constant, SHORT),
        background=256,
        background_clients=8,
        is_slow=True,
    ),
    Workload(
        "scale",
        "64 clients, one text each, a model that sleeps 10 ms a text",
        64,
        1,
        2048,
        partial(_constant, SHORT),
        sleeping=True,
    ),
)


def make_requests(workload: Workload, prose: Prose, *, model: str) -> Requests:
    """Write a workload's requests; base64, as OpenAI's own clients ask for."""
    generator = random.Random(SEED)
    texts = [
        prose.texts([workload.length(generator) for _ in range(workload.inputs)])
        for _ in range(workload.distinct)
    ]
    bodies = [body(request, model=model) for request in texts]
    if not workload.background:
        return Requests(workload, texts, bodies)
    behind = prose.texts([_MEDIUM] * workload.background)
    return Requests(workload, texts, bodies, [body(behind, model=model)])


def body(texts: Sequence[str], *, model: str) -> bytes:
    """Return the body of a request: one text as a string, several as a list."""
    request = {
        "model": model,
        "input": texts[0] if len(texts) == 1 else list(texts),
        "encoding_format": "base64",
    }
    return json.dumps(request).encode()
