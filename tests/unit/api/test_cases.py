"""Runs the cases in `cases/`: requests and expected responses as data.

Each file is a list of cases; `Case` defines their fields. An expected error is checked in every shape that an error can
have, so a case states its fields once.
"""

from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from serve_app import errors
from serve_app.messages import Failure, FailureCode
from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import Application, FakeEmbedder, build_application, error_kinds

pytestmark = pytest.mark.anyio

FOLDER = Path(__file__).parent / "cases"
SDK = {"x-stainless-lang": "python"}


class Strict(BaseModel):
    """Base of all parts of a case. Rejects unknown keys, which would be expectations that nothing checks."""

    model_config = ConfigDict(extra="forbid")


class Raised(Strict):
    """An error that the fake model raises."""

    kind: str
    code: str
    retry_after_s: float | None = None


class Given(Strict):
    """The state of the server before the request."""

    http: dict[str, Any] = {}
    model: dict[str, Any] = {}
    is_full: bool = False
    keys: str = ""
    raised: Raised | None = None
    failures: dict[int, FailureCode] = {}
    waits: bool = False
    is_ready: bool = True

    def build(self, tokenizer: Tokenizer, **http: Any) -> Application:
        """Build the application; `http` overrides the case's settings."""
        failures = tuple(Failure(index, code) for index, code in self.failures.items())
        embedder = FakeEmbedder(self._error(), failures, self.waits, self.is_ready)
        app = build_application(
            tokenizer,
            embedder=embedder,
            http={"max_concurrent_requests": 1} | self.http | http,
            model=self.model,
            keys=self.keys,
        )
        if self.is_full:
            app.requests.begin("an-id", method="POST").admit()
        return app

    def _error(self) -> Exception | None:
        if self.raised is None:
            return None
        kind = getattr(errors, self.raised.kind)
        error: Exception = kind(
            "raised by the test", self.raised.code, retry_after_s=self.raised.retry_after_s
        )
        return error


class ExpectedError(Strict):
    """The fields of an error, in either shape.

    `message` is a part of the message; None accepts any.
    """

    error: str
    error_type: str
    type: str
    code: str
    param: str | None = None
    message: str | None = None

    def check(self, body: Any, *, shape: Literal["flat", "openai"]) -> None:
        """Compare the body with the expected fields. In the flat shape `error` and `error_type` come first."""
        fields = body["error"] if shape == "openai" else body
        expected = {"type": self.type, "param": self.param, "code": self.code}
        if shape == "flat":
            expected = {"error": self.error, "error_type": self.error_type, **expected}
            assert list(body)[:2] == ["error", "error_type"]
        message = fields.pop("message")
        assert fields == expected
        assert self.message is None or self.message in message


class Case(Strict):
    """A request and its expected response.

    Attributes:
        name: a sentence.
        given: the state of the server before the request.
        json_body: a body to send as JSON.
        body: in place of `json_body`: a body to send unchanged.
        status: the expected status.
        error: the expected error.
        answer: the whole expected JSON.
        keys: in place of `answer`: some expected keys with their values.
        inputs: the expected number of vectors.
        same_as: a body that gets an identical response.
        answer_headers: expected headers; null for a header that must be absent.
        calls: how often the model must have been called.
    """

    name: str
    given: Given = Given()
    method: str = "POST"
    path: str = "/v1/embeddings"
    headers: dict[str, str] = {}
    json_body: Any = None
    body: str | None = None
    status: int
    error: ExpectedError | None = None
    answer: Any = None
    keys: dict[str, Any] = {}
    inputs: int | None = None
    same_as: Any = None
    answer_headers: dict[str, str | None] = {}
    calls: int | None = None

    async def send(
        self, app: Application, *, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Send the request."""
        sent = {**self.headers, **(headers or {})}
        content = None if self.body is None else self.body.encode()
        async with app.client() as client:
            if self.json_body is not None:
                return await client.request(
                    self.method, self.path, json=self.json_body, headers=sent
                )
            return await client.request(self.method, self.path, content=content, headers=sent)


def load_cases() -> list[Any]:
    """Read the cases of all files. A case's id consists of the file's name and its own."""
    return [
        pytest.param(Case.model_validate(case), id=f"{file.stem}: {case['name']}")
        for file in sorted(FOLDER.glob("*.yaml"))
        for case in yaml.safe_load(file.read_text(encoding="utf-8"))
    ]


CASES = load_cases()
FAILING = [case for case in CASES if case.values[0].error is not None]


@pytest.mark.parametrize("case", CASES)
async def test_a_request_gets_the_expected_response(case: Case, tokenizer: Tokenizer) -> None:
    app = case.given.build(tokenizer)

    response = await case.send(app)

    assert response.status_code == case.status
    assert response.headers["x-request-id"]
    for name, value in case.answer_headers.items():
        assert response.headers.get(name) == value, name
    if case.calls is not None:
        assert len(app.embedder.seen) == case.calls
    if case.error is not None:
        case.error.check(response.json(), shape="flat")
    elif response.content and response.headers["content-type"] == "application/json":
        check_answer(case, response.json())


def check_answer(case: Case, body: Any) -> None:
    """Compare the body of a successful response."""
    assert case.answer is None or body == case.answer
    assert {key: body[key] for key in case.keys} == case.keys
    if case.inputs is not None:
        assert [entry["index"] for entry in body["data"]] == list(range(case.inputs))


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0].same_as is not None])
async def test_equivalent_bodies_get_identical_responses(case: Case, tokenizer: Tokenizer) -> None:
    app = case.given.build(tokenizer)
    other = case.model_copy(update={"json_body": case.same_as, "body": None, "headers": {}})

    response = await case.send(app)
    same = await other.send(app)

    assert response.content == same.content


@pytest.mark.parametrize("case", FAILING)
async def test_the_openai_envelope_has_the_same_error_fields(
    case: Case, tokenizer: Tokenizer
) -> None:
    assert case.error is not None
    app = case.given.build(tokenizer, error_format="auto")

    response = await case.send(app, headers=SDK)

    assert response.status_code == case.status
    assert response.headers["content-type"] == "application/json"
    case.error.check(response.json(), shape="openai")


@pytest.mark.parametrize("headers", [{}, SDK], ids=["any client", "an SDK"])
@pytest.mark.parametrize(
    ("error_format", "shapes"),
    [
        ("auto", ("flat", "openai")),
        ("flat", ("flat", "flat")),
        ("openai", ("openai", "openai")),
    ],
)
async def test_the_setting_or_the_client_selects_the_error_shape(
    tokenizer: Tokenizer, error_format: str, shapes: tuple[str, str], headers: dict[str, str]
) -> None:
    app = build_application(tokenizer, http={"error_format": error_format})

    async with app.client(headers=headers) as client:
        response = await client.get("/nowhere")

    shape = "openai" if isinstance(response.json()["error"], dict) else "flat"
    expected = shapes[1] if headers else shapes[0]
    assert shape == expected
    assert response.headers.get("vary") == ("x-stainless-lang" if error_format == "auto" else None)


def test_every_error_of_the_contract_has_a_case() -> None:
    rows = {(kind.status, kind.error) for kind in error_kinds()}

    cases = {(c.values[0].status, c.values[0].error.error) for c in FAILING}

    assert rows - cases == {
        (408, "Request timeout"),  # tested in test_request_body.py, with a body that never ends
        # These two come from the proxies: tested in tests/unit/proxy.
        (414, "URI too long"),
        (431, "Request header fields too large"),
    }
