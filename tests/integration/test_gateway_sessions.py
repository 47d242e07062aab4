"""Sessions are trees: what is matched, what is forked, what is kept, and who may see it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from katsura.api.memory.v1.memory_pb2 import TreePolicy
from katsura.domain.ids import TenantId
from katsura.rpc.channel import open_channel
from katsura.rpc.clock import SystemClock
from katsura.rpc.context import CallContext
from katsura.sdk import Connection, Katsura, MemoryClient
from katsura.state.connect import Store
from katsura.state.tenants import NewKey, RedisTenantStore
from katsura.testing.house import MODEL, House

pytestmark = pytest.mark.asyncio(loop_scope="session")

LETTERS = {str(index): 100 for index in range(64, 90)}
Json = dict[str, object]


@pytest_asyncio.fixture(loop_scope="session")
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=house.url, timeout=60) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def session(client: httpx.AsyncClient) -> str:
    made = await client.post("/v1/sessions", json={"id": f"s-{uuid.uuid4().hex}"})
    assert made.status_code == 201
    return str(made.json()["id"])


async def key_of(house: House, tenant: str) -> NewKey:
    store = await Store.open(house.store.url)
    try:
        return await RedisTenantStore(store, SystemClock()).create_key(TenantId(tenant))
    finally:
        await store.close()


class Chat:
    """A conversation as a plain OpenAI client holds it: the whole history goes along each time."""

    def __init__(self, client: httpx.AsyncClient, session: str, branch: str = "") -> None:
        self.client, self.history = client, list[Json]()
        self.headers = {"x-session-id": session} | ({"x-session-branch": branch} if branch else {})
        self.last: Json = {}

    async def say(self, text: str, **fields: object) -> str:
        self.history.append({"role": "user", "content": text})
        asked: Json = {"model": MODEL, "messages": self.history, "max_tokens": 6, "temperature": 0, **fields}
        reply = await self.client.post(
            "/v1/chat/completions", json={"logit_bias": LETTERS, **asked}, headers=self.headers
        )
        assert reply.status_code == 200, reply.text
        self.last = reply.json()
        message = self.last["choices"][0]["message"]  # type: ignore[index]
        self.history.append({"role": "assistant", "content": message["content"]})
        return str(message["content"])

    @property
    def place(self) -> Json:
        return self.last["choices"][0]["katsura"]  # type: ignore[index,no-any-return]

    @property
    def cached(self) -> int:
        return int(self.last["usage"]["prompt_tokens_details"]["cached_tokens"])  # type: ignore[index]


async def tree_of(client: httpx.AsyncClient, session: str) -> Json:
    return dict((await client.get(f"/v1/sessions/{session}/tree")).json())


async def path_of(client: httpx.AsyncClient, session: str, branch: str) -> list[str]:
    tree = await tree_of(client, session)
    nodes = {node["id"]: node for node in tree["nodes"]}  # type: ignore[attr-defined]
    at = next(found["head"] for found in tree["branches"] if found["name"] == branch)  # type: ignore[attr-defined]
    texts: list[str] = []
    while at:
        texts.insert(0, nodes[at]["content"])
        at = nodes[at]["parent_id"]
    return texts


async def test_a_conversation_grows_on_one_branch(client: httpx.AsyncClient, session: str) -> None:
    chat = Chat(client, session)
    said = [await chat.say("one"), await chat.say("two")]
    tree = await tree_of(client, session)
    assert [branch["name"] for branch in tree["branches"]] == ["main"]  # type: ignore[attr-defined]
    assert await path_of(client, session, "main") == ["one", said[0], "two", said[1]]
    assert chat.place["branch"] == "main"


async def test_the_drawn_ids_are_the_next_prompts_prefix(client: httpx.AsyncClient, session: str) -> None:
    chat = Chat(client, session)
    # Without the bias the model draws bytes that are no characters: encoding its text again gives other ids.
    await chat.say("A first message that fills some pages of the cache.", max_tokens=40, logit_bias={})
    assert "\ufffd" in str(chat.history[-1]["content"])
    first = int(chat.last["usage"]["total_tokens"])  # type: ignore[index]
    await chat.say("And now?")
    assert chat.cached == (first - 1) // 16 * 16, "everything but the last, unfinished page comes from the cache"


async def test_an_edited_message_forks(client: httpx.AsyncClient, session: str) -> None:
    chat = Chat(client, session)
    first = await chat.say("one")
    await chat.say("two")
    edited = Chat(client, session)
    edited.history = chat.history[:2]
    other = await edited.say("three")
    assert edited.place["branch"] != "main"
    assert await path_of(client, session, str(edited.place["branch"])) == ["one", first, "three", other]
    assert (await path_of(client, session, "main"))[2] == "two"
    await edited.say("four")
    assert len((await tree_of(client, session))["branches"]) == 2  # type: ignore[arg-type]


async def test_asking_again_makes_another_answer_on_another_branch(client: httpx.AsyncClient, session: str) -> None:
    chat, again = Chat(client, session), Chat(client, session)
    await chat.say("one", temperature=1.5, seed=1)
    await again.say("one", temperature=1.5, seed=2)
    tree = await tree_of(client, session)
    assert len(tree["branches"]) == 2  # type: ignore[arg-type]
    assert sum(node["content"] == "one" for node in tree["nodes"]) == 1  # type: ignore[attr-defined]


async def test_several_choices_are_siblings(client: httpx.AsyncClient, session: str) -> None:
    chat = Chat(client, session)
    await chat.say("one", n=3, temperature=1.5, seed=3)
    places = [choice["katsura"] for choice in chat.last["choices"]]  # type: ignore[attr-defined]
    assert len({place["branch"] for place in places}) == 3
    tree = await tree_of(client, session)
    parents = {node["parent_id"] for node in tree["nodes"] if node["role"] == "assistant"}  # type: ignore[attr-defined]
    assert len(parents) == 1


async def test_a_named_branch_takes_what_comes_next(client: httpx.AsyncClient, session: str) -> None:
    chat = Chat(client, session, "main")
    first = await chat.say("one")
    chat.history.clear()
    second = await chat.say("two")
    assert await path_of(client, session, "main") == ["one", first, "two", second]
    unknown = Chat(client, session, "nothing")
    with pytest.raises(AssertionError, match="no such branch"):
        await unknown.say("x")


async def test_fork_and_revise_over_http_lead_the_conversation(client: httpx.AsyncClient, session: str) -> None:
    chat = Chat(client, session)
    await chat.say("one")
    kept = int(str(chat.place["node_id"]))
    await chat.say("two")
    forked = await client.post(f"/v1/sessions/{session}/fork", json={"at_node": kept, "name": "side"})
    assert (forked.status_code, forked.json()["name"], forked.json()["head"]) == (201, "side", kept)
    side = Chat(client, session)
    side.history = chat.history[:2]
    await side.say("three")
    assert side.place["branch"] == "side"
    revised = await client.post(
        f"/v1/sessions/{session}/revise", json={"branch": "main", "restore_after": kept, "reason": "a wrong turn"}
    )
    assert revised.status_code == 201, revised.text
    body = revised.json()
    assert (body["abandoned"]["name"], body["abandoned"]["state"]) == ("main", "abandoned")
    assert body["hint"]["content"] == "a wrong turn"
    restored = Chat(client, session, body["branch"]["name"])
    await restored.say("four")
    texts = await path_of(client, session, body["branch"]["name"])
    assert (texts[0], texts[2]) == ("one", "four")
    abandoned = Chat(client, session)
    abandoned.history = chat.history[:4]
    await abandoned.say("five")
    assert abandoned.place["branch"] not in ("main", body["branch"]["name"])


async def test_a_client_that_leaves_keeps_its_turn_and_asking_again_goes_on(
    client: httpx.AsyncClient, session: str
) -> None:
    # Letters only: drawn freely, the first token may be the last.
    turn = {"messages": [{"role": "user", "content": "long"}], "max_tokens": 900, "logit_bias": LETTERS}
    asked = {"model": MODEL, "stream": True, **turn}
    headers = {"x-session-id": session}
    async with client.stream("POST", "/v1/chat/completions", json=asked, headers=headers) as reply:
        async for line in reply.aiter_lines():
            if line:
                break
    assert await path_of(client, session, "main") == ["long"]
    chat = Chat(client, session)
    text = await chat.say("long")
    assert await path_of(client, session, "main") == ["long", text]


async def test_a_streamed_answer_is_in_the_tree_when_its_end_is_seen(client: httpx.AsyncClient, session: str) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=asked, headers={"x-session-id": session}) as reply:
        assert reply.headers["x-session-id"] == session
        async for line in reply.aiter_lines():
            choice = json.loads(line[6:])["choices"][0] if line.startswith("data: {") else {}
            if choice.get("finish_reason"):
                tree = await tree_of(client, session)
                assert choice["katsura"]["node_id"] in [node["id"] for node in tree["nodes"]]  # type: ignore[attr-defined]
                break
        else:
            pytest.fail("no end was seen")


async def test_sessions_are_made_listed_read_and_dropped(client: httpx.AsyncClient, session: str) -> None:
    again = await client.post("/v1/sessions", json={"id": session})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "tree_exists")
    made = (await client.post("/v1/sessions", json={"goal": "a goal", "pins": ["be brief"]})).json()
    assert (made["goal"], made["pins"]) == ("a goal", ["be brief"])
    listed = (await client.get("/v1/sessions?limit=100")).json()
    assert {session, made["id"]} <= {found["id"] for found in listed["data"]}
    assert (await client.get(f"/v1/sessions/{made['id']}")).json()["default_branch"] == "main"
    assert (await client.delete(f"/v1/sessions/{made['id']}")).json()["deleted"] is True
    assert (await client.get(f"/v1/sessions/{made['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("GET", "/v1/sessions/unknown", None, 404, "session_id"),
        ("GET", "/v1/sessions/unknown/tree", None, 404, "session_id"),
        ("DELETE", "/v1/sessions/unknown", None, 404, "session_id"),
        ("DELETE", "/v1/sessions/not%20a%20name", None, 404, "session_id"),
        ("POST", "/v1/sessions/unknown/fork", {}, 404, "session_id"),
        ("POST", "/v1/sessions/unknown/revise", {}, 400, "restore_after"),
        ("POST", "/v1/sessions/unknown/revise", {"restore_after": -1}, 400, "restore_after"),
        ("POST", "/v1/sessions/unknown/fork", {"at_node": "x"}, 400, "at_node"),
        ("POST", "/v1/sessions/unknown/fork", {"colour": 1}, 400, "colour"),
        ("POST", "/v1/sessions", {"id": "no spaces"}, 400, "id"),
        ("POST", "/v1/sessions", {"pins": "x"}, 400, "pins"),
        ("GET", "/v1/sessions?limit=0", None, 400, "limit"),
        ("GET", "/v1/sessions?limit=²", None, 400, "limit"),
        ("GET", f"/v1/sessions?limit={'9' * 5000}", None, 400, "limit"),
        ("GET", "/v1/sessions?page=elsewhere", None, 400, "page"),
    ],
)
async def test_wrong_session_requests_are_answered_in_the_envelope(
    client: httpx.AsyncClient, method: str, path: str, body: object, status: int, param: str | None
) -> None:
    reply = await client.request(method, path, json=body)
    assert reply.status_code == status, reply.text
    if param is not None:
        assert reply.json()["error"]["param"] == param


async def test_what_a_session_does_not_have_is_named_as_the_client_wrote_it(
    client: httpx.AsyncClient, session: str
) -> None:
    async def refused(path: str, **body: object) -> tuple[int, object]:
        reply = await client.post(f"/v1/sessions{path}", json=body)
        assert "tree" not in reply.json()["error"]["message"], reply.text
        return reply.status_code, reply.json()["error"]["param"]

    await Chat(client, session).say("one")
    assert await refused("", id=session) == (409, "id")
    assert await refused(f"/{session}/fork", at_node=999) == (404, "at_node")
    assert await refused(f"/{session}/fork", branch="elsewhere") == (404, "branch")
    assert await refused(f"/{session}/fork", name="main") == (409, "name")
    assert await refused(f"/{session}/revise", restore_after=999) == (404, "restore_after")
    assert await refused(f"/{session}/revise", restore_after=2) == (412, "restore_after")
    assert await refused(f"/{session}/revise", restore_after=1, expected_head=1) == (409, "expected_head")
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "y"}]}
    headers = {"x-session-id": session, "x-session-branch": "elsewhere"}
    reply = await client.post("/v1/chat/completions", json=asked, headers=headers)
    assert (reply.status_code, reply.json()["error"]["param"]) == (404, "x-session-branch")


async def test_another_tenants_ids_answer_exactly_as_unknown_ones(
    house: House, client: httpx.AsyncClient, session: str
) -> None:
    response = (await client.post("/v1/responses", json={"model": MODEL, "input": "x", "max_output_tokens": 2})).json()
    await Chat(client, session).say("mine")
    key = await key_of(house, "stranger")
    async with httpx.AsyncClient(
        base_url=house.url, headers={"authorization": f"Bearer {key.secret}"}, timeout=60
    ) as stranger:
        for method, path in [
            ("GET", "/v1/sessions/{}"),
            ("GET", "/v1/sessions/{}/tree"),
            ("DELETE", "/v1/sessions/{}"),
            ("POST", "/v1/sessions/{}/fork"),
        ]:
            foreign = await stranger.request(method, path.format(session), json={})
            unknown = await stranger.request(method, path.format("u" * len(session)), json={})
            assert foreign.status_code == unknown.status_code == 404
            assert foreign.text.replace(session, "u" * len(session)) == unknown.text
        for method in ("GET", "DELETE"):
            assert (await stranger.request(method, f"/v1/responses/{response['id']}")).status_code == 404
        continued = {"model": MODEL, "input": "y", "previous_response_id": response["id"]}
        assert (await stranger.post("/v1/responses", json=continued)).status_code == 404
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "y"}]}
        headers = {"x-session-id": session}
        assert (await stranger.post("/v1/chat/completions", json=asked, headers=headers)).status_code == 404
        assert (await stranger.get("/v1/sessions")).json()["data"] == []
    assert (await client.get(f"/v1/sessions/{session}")).status_code == 200


async def test_equal_prompts_of_two_tenants_share_no_page(house: House, client: httpx.AsyncClient) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "a secret " * 8}], "max_tokens": 2}
    await client.post("/v1/chat/completions", json=asked)
    key = await key_of(house, "spy")
    headers = {"authorization": f"Bearer {key.secret}"}
    reply = (await client.post("/v1/chat/completions", json=asked, headers=headers)).json()
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_two_continuations_of_one_response_are_two_branches(client: httpx.AsyncClient) -> None:
    async def respond(text: str, previous: str | None = None) -> Json:
        asked = {"model": MODEL, "input": text, "max_output_tokens": 4, "previous_response_id": previous}
        return dict((await client.post("/v1/responses", json=asked)).json())

    first = await respond("one")
    tree_id = str(first["id"]).removeprefix("resp_").rpartition("-")[0]
    await asyncio.gather(respond("two", str(first["id"])), respond("three", str(first["id"])))
    tree = await tree_of(client, tree_id)
    assert len(tree["branches"]) == 2  # type: ignore[arg-type]
    turns = {node["content"]: node["parent_id"] for node in tree["nodes"] if node["role"] == "user"}  # type: ignore[attr-defined]
    assert turns["two"] == turns["three"]


async def test_what_is_not_stored_leaves_nothing(client: httpx.AsyncClient) -> None:
    before = (await client.get("/v1/sessions?limit=100")).json()["data"]
    asked: Json = {"model": MODEL, "input": "x", "max_output_tokens": 4}
    kept = (await client.post("/v1/responses", json=asked)).json()
    loose = (
        await client.post("/v1/responses", json={**asked, "store": False, "previous_response_id": kept["id"]})
    ).json()
    assert loose["usage"]["input_tokens"] > kept["usage"]["input_tokens"]
    assert (await client.get(f"/v1/responses/{loose['id']}")).status_code == 404
    tree_id = kept["id"].removeprefix("resp_").rpartition("-")[0]
    assert len((await tree_of(client, tree_id))["nodes"]) == 2  # type: ignore[arg-type]
    await client.delete(f"/v1/responses/{kept['id']}")
    after = (await client.get("/v1/sessions?limit=100")).json()["data"]
    assert {found["id"] for found in after} == {found["id"] for found in before}


async def test_instructions_lead_their_own_prompt_and_are_not_kept(client: httpx.AsyncClient) -> None:
    asked: Json = {"model": MODEL, "input": "x", "max_output_tokens": 2}
    plain = (await client.post("/v1/responses", json=asked)).json()
    told = (await client.post("/v1/responses", json={**asked, "instructions": "Answer in verse, at length."})).json()
    assert told["usage"]["input_tokens"] != plain["usage"]["input_tokens"]
    assert told["instructions"] == "Answer in verse, at length."
    tree_id = told["id"].removeprefix("resp_").rpartition("-")[0]
    roles = [node["role"] for node in (await tree_of(client, tree_id))["nodes"]]  # type: ignore[attr-defined]
    assert roles == ["user", "assistant"]


async def test_the_sdk_sees_the_same_tree(house: House, client: httpx.AsyncClient, session: str) -> None:
    chat = Chat(client, session)
    text = await chat.say("one")
    store = await Store.open(house.store.url)
    tenant = await RedisTenantStore(store, SystemClock()).ensure_tenant(TenantId("default"))
    await store.close()
    async with open_channel(house.processes["memory"].address) as channel:
        memory = MemoryClient(Connection(channel, house.token)).acting_for(CallContext(tenant, internal=True))
        nodes = await memory.get_whole_path(session)
        assert [node.step.content for node in nodes] == ["one", text]
        assert nodes[1].step.cost.completion_tokens == 6
        assert all(node.tokenized_for for node in nodes)


async def test_people_without_an_event_loop_have_the_same_tree(house: House) -> None:
    key = await key_of(house, "sync")

    def use() -> None:
        with Katsura(house.processes["memory"].address, api_key=key.secret) as katsura:
            tree = katsura.create_tree(goal="try")
            first = tree.grow("user", "one")
            side = tree.fork()
            side.grow("user", "two")
            assert [node.step.content for node in side.path()] == ["one", "two"]
            assert [node.node_id for node in tree.path()] == [first]
            tree.grow("user", "three")
            revised = tree.revise(first, "no")
            assert tree.branch.name == revised.branch.name
            assert [segment.content for segment in tree.context(1000)][0:1]
            assert [found.tree_id for found in katsura.list_trees()] == [tree.tree_id]
            katsura.delete_tree(tree.tree_id)

    await asyncio.to_thread(use)


async def test_a_long_conversation_is_compressed_and_goes_on(house: House, client: httpx.AsyncClient) -> None:
    session = f"s-{uuid.uuid4().hex}"
    store = await Store.open(house.store.url)
    tenant = await RedisTenantStore(store, SystemClock()).ensure_tenant(TenantId("default"))
    await store.close()
    async with open_channel(house.processes["memory"].address) as channel:
        memory = MemoryClient(Connection(channel, house.token)).acting_for(CallContext(tenant, internal=True))
        await memory.create_tree(tree_id=session, policy=TreePolicy(raw_token_limit=40))
    chat = Chat(client, session)
    for turn in range(12):
        await chat.say(f"Message number {turn} with a few more words, so that it counts.")
        kinds = {node["type"] for node in (await tree_of(client, session))["nodes"]}  # type: ignore[attr-defined]
        if "summary" in kinds:
            break
    else:
        pytest.fail("nothing was compressed")
    await chat.say("Still there?")
    assert chat.place["branch"] == "main"


async def test_a_session_longer_than_the_context_goes_on_without_its_oldest_steps(
    client: httpx.AsyncClient, session: str
) -> None:
    chat = Chat(client, session)
    sizes = []
    for turn in range(10):
        await chat.say(f"{turn}: " + "words " * 25)
        sizes.append(int(chat.last["usage"]["prompt_tokens"]))  # type: ignore[index]
    assert sum(len(str(message["content"])) for message in chat.history) > 1024
    assert max(sizes) <= 1024
    assert len(await path_of(client, session, "main")) == 20
    assert chat.place["branch"] == "main"


async def test_a_turn_that_cannot_fit_says_so(client: httpx.AsyncClient, session: str) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 3000}], "max_tokens": 4}
    reply = await client.post("/v1/chat/completions", json=asked, headers={"x-session-id": session})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"


async def test_an_empty_answer_is_an_answer(client: httpx.AsyncClient, session: str) -> None:
    chat = Chat(client, session)
    end_of_turn = {"258": 100}
    assert await chat.say("one", logit_bias=end_of_turn) == ""
    assert chat.last["choices"][0]["finish_reason"] == "stop"  # type: ignore[index]
    await chat.say("two")
    assert (await path_of(client, session, "main"))[:3] == ["one", "", "two"]
