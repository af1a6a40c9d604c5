"""The workloads: number of clients, texts per request and token lengths, and the request bodies made from them.

This module does not depend on servers or clocks.
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
LARGE_TOKENS = 2048 * _MEDIUM  # tokens per request of the workload `large`


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of load.

    Attributes:
        name: the identifier in result files and for --only.
        title: the label in tables and charts.
        clients: number of connections. Each has one request in flight at any time.
        inputs: texts per request.
        distinct: number of distinct requests, which are sent in a cycle.
        length: draws the token length of one text, including special tokens.
        background: texts per request of the background clients, which add load but are not measured.
        background_clients: number of background clients, if `background` is set.
        is_slow: whether requests are so slow that only few fit into a measurement. Requests that lie partly
            within it are then counted in part.
        sleeping: whether the workload is for sleeping models instead of real ones.
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
        """Texts in flight at any time."""
        return self.clients * self.inputs


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of a workload.

    Attributes:
        texts: the texts of each request.
        bodies: the JSON body of each request.
        background: the JSON bodies that each background client sends.
    """

    workload: Workload
    texts: Sequence[Sequence[str]]
    bodies: Sequence[bytes]
    background: Sequence[bytes] = ()


def _constant(tokens: int, _: random.Random) -> int:
    return tokens


def log_normal(generator: random.Random) -> int:
    """Draw a token length typical of search texts: log-normal, median 40, clipped to 6 to 256."""
    tokens = round(_MEDIAN * generator.lognormvariate(0, _SPREAD))
    return min(max(tokens, _LEAST), _MOST)


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
        "4 clients, 32 texts of 32 tokens per request",
        4,
        32,
        48,
        partial(_constant, _MEDIUM),
        is_slow=True,
    ),
    Workload("one", "1 client, one 12-token text", 1, 1, 512, partial(_constant, SHORT)),
    Workload(
        "large",
        "1 client, 2,048 texts of 32 tokens per request",
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
        "priorities",
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
        "64 clients, one text each, a model that sleeps 10 ms per text",
        64,
        1,
        2048,
        partial(_constant, SHORT),
        sleeping=True,
    ),
)


def make_requests(workload: Workload, prose: Prose, *, model: str) -> Requests:
    """Build a workload's requests. They ask for base64, as OpenAI's own clients do."""
    generator = random.Random(SEED)
    texts = [
        prose.texts([workload.length(generator) for _ in range(workload.inputs)])
        for _ in range(workload.distinct)
    ]
    bodies = [body(request, model=model) for request in texts]
    if not workload.background:
        return Requests(workload, texts, bodies)
    background = prose.texts([_MEDIUM] * workload.background)
    return Requests(workload, texts, bodies, [body(background, model=model)])


def body(texts: Sequence[str], *, model: str) -> bytes:
    """Return a request body. A single text is sent as a string, several texts as a list."""
    request = {
        "model": model,
        "input": texts[0] if len(texts) == 1 else list(texts),
        "encoding_format": "base64",
    }
    return json.dumps(request).encode()
