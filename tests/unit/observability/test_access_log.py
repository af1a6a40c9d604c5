import logging
import sys

import pytest

from serve_app.errors import InvalidRequestError
from serve_app.observability.access_log import (
    AccessLog,
    WithoutTracebacks,
    hide_expected_tracebacks,
)
from serve_app.observability.metrics import Metrics
from tests.support.fakes import counted

MARKER = "xyzzy"


def test_a_request_is_logged_as_one_line_with_fields(log: pytest.LogCaptureFixture) -> None:
    requests = AccessLog(Metrics())
    record = requests.begin("an-id", method="POST", route="/v1/embeddings")
    record.model, record.inputs, record.tokens = "acme/tiny", 2, 9
    record.status = 200

    requests.end(record)

    (line,) = log.records
    assert line.getMessage().startswith("POST /v1/embeddings 200 ")
    assert line.getMessage().endswith("ms inputs=2 tokens=9")
    fields = vars(line)
    assert fields["request_id"] == "an-id"
    assert fields["model"] == "acme/tiny"
    assert fields["status"] == 200
    assert fields["seconds"] >= 0


def test_a_request_is_counted_in_flight_and_when_it_ends() -> None:
    metrics = Metrics()
    requests = AccessLog(metrics)

    record = requests.begin("an-id", method="POST", route="/v1/embeddings")
    while_running = counted(metrics, "embeddings_requests_in_flight")
    record.model, record.status = "acme/tiny", 200
    requests.end(record)

    labels = {"model": "acme/tiny", "route": "/v1/embeddings", "status": "200", "key": ""}
    assert while_running == 1
    assert counted(metrics, "embeddings_requests_in_flight") == 0
    assert counted(metrics, "embeddings_requests_total", **labels) == 1


def test_a_service_error_is_counted_and_passed_unchanged(log: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    requests = AccessLog(metrics)
    record = requests.begin("an-id", method="POST")
    error = InvalidRequestError("No.", "a_code")

    returned = requests.fail(record, error)
    requests.end(record)

    (line,) = log.records
    assert returned is error
    assert record.status == 400
    assert line.getMessage().endswith(" code=a_code")
    assert counted(metrics, "embeddings_errors_total", route="other", code="a_code") == 1


def test_an_unexpected_error_is_logged_by_type_and_location(
    log: pytest.LogCaptureFixture,
) -> None:
    """Its message can contain an input."""
    requests = AccessLog(Metrics())
    record = requests.begin("an-id", method="POST")

    try:
        int(MARKER)  # "invalid literal for int() with base 10: 'xyzzy'"
    except ValueError as error:
        returned = requests.fail(record, error)

    (line,) = log.records
    assert returned.status == 500
    assert MARKER not in f"{returned} {vars(line)}"
    assert "ValueError at test_access_log.py:" in line.getMessage()
    assert vars(line)["request_id"] == "an-id"


def failed(error: Exception) -> logging.LogRecord:
    """Return the log record that Ray Serve writes for an exception."""
    try:
        raise error
    except type(error):
        return logging.LogRecord(
            "ray.serve", logging.ERROR, __file__, 1, "Request failed.", (), sys.exc_info()
        )


def test_ray_serve_logs_a_service_error_without_traceback() -> None:
    record = failed(InvalidRequestError("No.", "a_code"))

    passes = WithoutTracebacks().filter(record)

    assert passes
    assert record.exc_info is None
    assert (record.levelname, record.getMessage()) == ("INFO", "Request failed. 400 a_code")


def test_any_other_error_keeps_its_traceback() -> None:
    record = failed(ZeroDivisionError())

    passes = WithoutTracebacks().filter(record)

    assert passes
    assert record.exc_info is not None
    assert record.levelno == logging.ERROR


def test_the_filter_is_added_to_ray_serves_own_logger() -> None:
    logger = logging.getLogger("ray.serve")
    before = list(logger.filters)

    try:
        hide_expected_tracebacks()
        added = [one for one in logger.filters if one not in before]
    finally:
        logger.filters[:] = before

    assert [type(one) for one in added] == [WithoutTracebacks]
