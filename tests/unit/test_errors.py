import pickle

import pytest
from ray.exceptions import RayTaskError

from serve_app import errors
from serve_app.errors import MethodNotAllowedError, ServiceError
from tests.support.fakes import error_kinds


def all_errors() -> list[ServiceError]:
    """Make one of every class that is raised."""
    fields = ("it went wrong", "a_code", "input[3]", 7)
    return [
        MethodNotAllowedError("GET, HEAD") if kind is MethodNotAllowedError else kind(*fields)
        for kind in error_kinds()
    ]


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_whole(error: ServiceError) -> None:
    """An error raised in a replica reaches a handle's caller with every field."""
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == error.message


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: type(error).__name__)
def test_an_error_in_rays_wrapping_pickles_as_itself(error: ServiceError) -> None:
    """Without gRPC, a caller of a handle gets a subclass that Ray has just made, which nobody could import."""
    wrapped = RayTaskError("embed", "a traceback", error).as_instanceof_cause()

    copy = pickle.loads(pickle.dumps(wrapped))

    assert isinstance(wrapped, type(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: type(error).__name__)
def test_every_error_has_words_of_its_own_status(error: ServiceError) -> None:
    """`error_type` follows from the status, as in the contract's table."""
    by_status = {
        401: "authentication",
        424: "backend",
        429: "overloaded",
        500: "internal",
        503: "unavailable",
    }

    expected = by_status.get(error.status, "validation" if error.status < 424 else "unavailable")

    assert error.error_type == expected
    assert error.openai_type in {"invalid_request_error", "server_error", "rate_limit_error"}


def test_two_errors_have_the_same_words_only_if_one_is_the_other() -> None:
    """A reader of `error` can tell the cases of one status apart."""
    words = [(error.status, error.error) for error in all_errors()]

    assert len(set(words)) == len(words)


def test_the_method_that_is_not_allowed_is_told_which_are() -> None:
    """The 405 carries what its `Allow` header says."""
    error = MethodNotAllowedError("POST")

    assert error.allow == "POST"
    assert "POST" in error.message


def test_a_model_that_cannot_be_loaded_is_no_answer_to_a_request() -> None:
    """Its message names files, so it must not be taken for an error that clients get."""
    assert not issubclass(errors.ModelLoadError, ServiceError)
