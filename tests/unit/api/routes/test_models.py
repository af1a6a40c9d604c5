import pytest

from serve_app.tokenization.tokenizer import Tokenizer
from tests.support.fakes import ALIAS, MODEL, RANKER, Application, build_application

pytestmark = pytest.mark.anyio


@pytest.fixture
def app(tokenizer: Tokenizer) -> Application:
    return build_application(tokenizer)


async def test_models_are_listed_under_every_name_and_alias(app: Application) -> None:
    async with app.client() as client:
        listed = (await client.get("/v1/models")).json()
        with_slash = (await client.get("/v1/models/")).json()
        each = [(await client.get(f"/v1/models/{card['id']}")).json() for card in listed["data"]]

    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == [MODEL, ALIAS, RANKER]
    assert all(isinstance(card["created"], int) for card in listed["data"])
    assert with_slash == listed
    assert each == listed["data"]
