import pickle

import pytest
from ray.exceptions import RayTaskError

from serve_app import errors
from serve_app.errors import InvalidRequestError, MethodNotAllowedError, ServiceError
from tests.support.fakes import error_kinds


def all_errors() -> list[ServiceError]:
    """Return one error of each class that is raised."""
    return [
        MethodNotAllowedError("GET, HEAD")
        if kind is MethodNotAllowedError
        else kind("{item} went wrong", "a_code", "input", index=3, retry_after_s=7)
        for kind in error_kinds()
    ]


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: type(error).__name__)
def test_a_pickled_error_keeps_all_fields(error: ServiceError) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == error.message


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: type(error).__name__)
def test_an_error_wrapped_by_ray_pickles_as_its_own_class(error: ServiceError) -> None:
    """Without gRPC, a handle's caller gets a subclass that Ray creates at run time and nobody can import."""
    wrapped = RayTaskError("embed", "a traceback", error).as_instanceof_cause()

    copy = pickle.loads(pickle.dumps(wrapped))

    assert isinstance(wrapped, type(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: type(error).__name__)
def test_error_type_follows_from_the_status(error: ServiceError) -> None:
    by_status = {
        401: "authentication",
        424: "backend",
        429: "overloaded",
        431: "validation",
        500: "internal",
        503: "unavailable",
    }

    expected = by_status.get(error.status, "validation" if error.status < 424 else "unavailable")

    assert error.error_type == expected
    assert error.openai_type in {"invalid_request_error", "server_error", "rate_limit_error"}


def test_errors_of_one_status_have_distinct_descriptions() -> None:
    words = [(error.status, error.error) for error in all_errors()]

    assert len(set(words)) == len(words)


def test_an_error_names_the_item_in_param_and_message() -> None:
    error = InvalidRequestError("{item} is empty.", "empty_input", "input", index=3)

    assert (error.field, error.index) == ("input", 3)
    assert error.param == "input[3]"
    assert error.message == str(error) == "input[3] is empty."


@pytest.mark.parametrize(
    ("field", "is_single", "param"),
    [("input", False, "input[3]"), ("inputs", False, "inputs[3]"), ("inputs", True, "inputs")],
)
def test_the_item_gets_the_name_that_the_client_used(
    field: str,
    is_single: bool,  # noqa: FBT001
    param: str,
) -> None:
    error = InvalidRequestError("{item} is empty.", "empty_input", "input", index=3)

    error.named_as_sent(field, is_single=is_single)

    assert (error.param, error.message) == (param, f"{param} is empty.")


def test_only_the_inputs_are_renamed() -> None:
    error = InvalidRequestError("dimensions is too large.", "invalid_dimensions", "dimensions")

    assert error.named_as_sent("inputs", is_single=True).param == "dimensions"


def test_method_not_allowed_names_the_allowed_methods() -> None:
    error = MethodNotAllowedError("POST")

    assert error.allow == "POST"
    assert "POST" in error.message


def test_model_load_error_is_not_a_service_error() -> None:
    """Its message names files, so it must not reach clients."""
    assert not issubclass(errors.ModelLoadError, ServiceError)
