"""The link that logs a browser in to the Prefect UI, and headers that keep other pages from framing it.

Prefect's own login asks for the key after two banners about errors. The link holds the key in its fragment, which a
browser sends nowhere; the page behind it checks the key and puts it where Prefect's UI looks for it.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

PATH = "/key"
_NO_FRAMES = [(b"content-security-policy", b"frame-ancestors 'none'"), (b"x-frame-options", b"DENY")]
_PAGE = """<!doctype html><meta charset="utf-8"><title>ril serve</title><p id="state">checking the key</p><script>
const key = btoa(decodeURIComponent(location.hash.slice(1)));
history.replaceState(null, "", location.pathname);
fetch("/api/admin/version", {headers: {Authorization: "Basic " + key}}).then(answer => {
  if (answer.ok) {
    localStorage.setItem("prefect-password", key);
    location.replace("/deployments");
  } else {
    document.getElementById("state").textContent = "Not the key of the running `ril serve`.";
  }
});
</script>
"""


def make_link(url: str, key: str) -> str:
    """The link for the server whose API is at `url`."""
    return f"{url.removesuffix('/api')}{PATH}#{key}"


class LoginPage:
    """The ASGI app `app` with the page at PATH; no page of it may be shown inside another."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers one request."""

        async def send_unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_NO_FRAMES]}
            await send(message)

        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "GET":
            headers = [
                (b"content-type", b"text/html; charset=utf-8"),
                (b"cache-control", b"no-store"),
                (b"referrer-policy", b"no-referrer"),
            ]
            await send_unframed({"type": "http.response.start", "status": 200, "headers": headers})
            await send_unframed({"type": "http.response.body", "body": _PAGE.encode()})
        else:
            await self.app(scope, receive, send_unframed)
