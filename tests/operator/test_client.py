# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from tests.shell_world import Api

from kompakt.operator.errors import ApiError, Conflict, Forbidden, Invalid, NotFound, NotLeader
from kompakt.operator.resources import BY_NAME

DEPLOYMENT = BY_NAME["Deployment"]
MANIFEST = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "d", "namespace": "n"},
}


def status(code: int, reason: str, message: str = "because") -> Any:
    """A `Status` of Kubernetes."""

    def respond(_: web.Request) -> web.StreamResponse:
        body = {"kind": "Status", "reason": reason, "message": message, "code": code}
        return web.json_response(body, status=code)

    return respond


def breaks(request: web.Request) -> web.StreamResponse:
    """The connection breaks before the answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.mark.slow
@pytest.mark.parametrize(
    "trouble",
    [breaks, status(503, "ServiceUnavailable"), status(429, ""), status(500, "InternalError")],
    ids=["lost", "unavailable", "busy", "internal"],
)
async def test_passing_trouble_is_tried_again(api: Api, trouble: Any) -> None:
    """A write whose answer was lost, or that a busy server refused, is sent again."""
    api.script[:] = [trouble, trouble]

    await api.client.apply(MANIFEST)

    path = "/apis/apps/v1/namespaces/n/deployments/d?fieldManager=kompakt&force=true"
    assert api.requests == [("PATCH", path)] * 3


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (404, "NotFound", NotFound),
        (409, "Conflict", Conflict),
        (422, "Invalid", Invalid),
        (403, "Forbidden", Forbidden),
    ],
)
async def test_refusals_are_not_tried_again(
    api: Api, code: int, reason: str, error: type[ApiError]
) -> None:
    """What the API server refuses for a reason comes out as an error with that reason."""
    api.script[:] = [status(code, reason, "field is wrong")]

    with pytest.raises(error, match="field is wrong") as caught:
        await api.client.apply(MANIFEST)

    assert caught.value.reason == reason
    assert len(api.requests) == 1


@pytest.mark.slow
async def test_trouble_that_stays_becomes_an_error(api: Api) -> None:
    """After a few attempts the queue's backoff takes over."""
    api.script[:] = [status(503, "ServiceUnavailable")] * 10

    with pytest.raises(ApiError):
        await api.client.get(DEPLOYMENT, "n", "d")

    assert len(api.requests) == 4


async def test_creating_what_exists_is_fine(api: Api) -> None:
    """Create once: the second time nothing happens."""
    api.script[:] = [status(409, "AlreadyExists")]

    assert await api.client.create(MANIFEST) is None


async def test_deleting_what_is_gone_is_fine(api: Api) -> None:
    """Delete is done when the object is gone, by whomever."""
    api.script[:] = [status(404, "NotFound")]

    await api.client.delete(DEPLOYMENT, "n", "d")


async def test_lists_are_read_to_their_end(api: Api) -> None:
    """A list of several pages is one list, and its items say what they are."""

    def page(*names: str, more: str = "") -> Any:
        items = [{"metadata": {"name": name}} for name in names]
        body = {"metadata": {"resourceVersion": "9", "continue": more}, "items": items}
        return lambda _: web.json_response(body)

    api.script[:] = [page("a", "b", more="token"), page("c")]

    items, version = await api.client.list(DEPLOYMENT, "n", labels="x=y")

    assert [item["metadata"]["name"] for item in items] == ["a", "b", "c"]
    assert {item["kind"] for item in items} == {"Deployment"}
    assert version == "9"
    assert "continue=token" in api.requests[1][1]
    assert all("labelSelector=x%3Dy" in path for _, path in api.requests)


async def test_a_list_that_expires_between_pages_is_an_error(api: Api) -> None:
    """Half a list is never taken for a whole one."""
    first = {"metadata": {"continue": "token"}, "items": [{"metadata": {"name": "a"}}]}
    api.script[:] = [lambda _: web.json_response(first), status(410, "Expired")]

    with pytest.raises(ApiError):
        await api.client.list(DEPLOYMENT)


async def test_nothing_is_written_once_the_lease_is_gone(api: Api) -> None:
    """A guarded client asks before each write; reading is free."""
    leading = [True]
    guarded = api.client.guarded(lambda: leading[0])
    await guarded.apply(MANIFEST)
    leading[0] = False

    with pytest.raises(NotLeader):
        await guarded.apply(MANIFEST)
    await guarded.get(DEPLOYMENT, "n", "d")

    assert [verb for verb, _ in api.requests] == ["PATCH", "GET"]
    await api.client.apply(MANIFEST)
