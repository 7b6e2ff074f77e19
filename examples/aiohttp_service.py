"""An aiohttp.web service. The client has its own connection pool, apart from the server's sessions.

FLINKS_AUTH_SECRET=... FLINKS_INSTANCE=toolbox python aiohttp_service.py
"""

import os
from collections.abc import AsyncIterator

from aiohttp import web

from flinks_async import FlinksClient, FlinksError

TOKENS = {"u1": "3c9c1a3e-0000-4000-8000-000000000001"}  # your database
FLINKS = web.AppKey("flinks", FlinksClient)


async def flinks_context(app: web.Application) -> AsyncIterator[None]:
    async with FlinksClient.from_env() as flinks:
        app[FLINKS] = flinks
        yield


async def balance(request: web.Request) -> web.Response:
    token = TOKENS.get(request.match_info["user"])
    if token is None:
        raise web.HTTPNotFound
    try:
        answer = await request.app[FLINKS].partner_access(token, timeout=10)
    except FlinksError as error:
        return web.json_response({"error": type(error).__name__}, status=502)
    return web.json_response({a.title or "account": str(a.balance.current) for a in answer.accounts if a.balance})


def make_app() -> web.Application:
    app = web.Application()
    app.cleanup_ctx.append(flinks_context)
    app.router.add_get("/balance/{user}", balance)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(os.environ.get("PORT", "8000")), shutdown_timeout=20)
