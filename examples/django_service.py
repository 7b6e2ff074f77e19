"""An async view of Django, in one file. ASGI servers keep one event loop, so one client serves all requests.

    pip install flinks-async django uvicorn
    FLINKS_AUTH_SECRET=... FLINKS_INSTANCE=toolbox uvicorn django_service:application

Django has no hook for the end of the process. The client opens connections on first use, and the server's end closes them.
"""

import os

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from flinks_async import FlinksClient, FlinksError

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY=os.urandom(32).hex())

TOKENS = {"u1": "3c9c1a3e-0000-4000-8000-000000000001"}  # your database
flinks = FlinksClient.from_env()


async def balance(request: HttpRequest, user: str) -> JsonResponse:
    if user not in TOKENS:
        return JsonResponse({"error": "unknown user"}, status=404)
    try:
        answer = await flinks.partner_access(TOKENS[user], timeout=10)
    except FlinksError as error:
        return JsonResponse({"error": type(error).__name__}, status=502)
    return JsonResponse({a.title or "account": str(a.balance.current) for a in answer.accounts if a.balance})


urlpatterns = [path("balance/<str:user>", balance)]
application = get_asgi_application()
