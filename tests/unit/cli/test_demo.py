"""The name of the demo's session."""

from __future__ import annotations

import json

import httpx

from katsura.cli.client import Gateway
from katsura.cli.demo import new_session


def test_a_second_demo_in_one_data_folder_gets_a_name_of_its_own() -> None:
    taken = {"demo", "demo-2"}

    def answer(request: httpx.Request) -> httpx.Response:
        name = json.loads(request.content)["id"]
        if name in taken:
            return httpx.Response(409, json={"error": {"message": "it exists", "code": "tree_exists"}})
        taken.add(name)
        return httpx.Response(201, json={"id": name})

    with Gateway("http://gateway", transport=httpx.MockTransport(answer)) as gateway:
        assert [new_session(gateway), new_session(gateway)] == ["demo-3", "demo-4"]
