"""An OpenAI-compatible server of the adapted model: completions, chats, streams, health and metrics."""

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tttnn.generation.answers import failure
from tttnn.generation.api import ChatRequest, CompletionRequest
from tttnn.generation.engine import Engine
from tttnn.generation.service import Limits, Metrics, Service


PATHS = ("/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")


def create_app(engine: Engine, model_name: str, limits: Limits | None = None, api_key: str | None = None) -> FastAPI:
    """
    Make the application that `tttnn serve` runs.

    Args:
        engine (`Engine`):
            Answers the requests; the application closes it when it ends.
        model_name (`str`):
            What requests call the model.
        limits (`Limits`, *optional*):
            What one request may ask for.
        api_key (`str`, *optional*):
            What clients must send, `Authorization: Bearer KEY`. By default nothing. `/health` needs none.

    Returns:
        `FastAPI`: an ASGI application.
    """
    limits = limits or Limits()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(title="tttnn", lifespan=lifespan, openapi_url=None)
    metrics = Metrics(engine)
    service = Service(engine, model_name, limits, metrics)
    app.add_middleware(Guard, limits=limits, api_key=api_key, metrics=metrics)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)

    @app.get("/health")
    async def health() -> Response:
        if not engine.is_alive:
            return failure(503, "The model no longer answers. Start the server again.")
        return JSONResponse({"status": "ok", "waiting": engine.num_waiting})

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> Response:
        entry = {"id": model_name, "object": "model", "created": service.created, "owned_by": "tttnn"}
        return JSONResponse({"object": "list", "data": [entry]})

    @app.post("/v1/completions")
    async def completions(request: CompletionRequest, http: HttpRequest) -> Response:
        return await service.complete(request, http)

    @app.post("/v1/chat/completions")
    async def chats(request: ChatRequest, http: HttpRequest) -> Response:
        return await service.chat(request, http)

    return app


class Guard:
    """Looks at each request before it is read: its key, and its size; and counts the answers."""

    def __init__(self, app: ASGIApp, limits: Limits, api_key: str | None, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in PATHS else "other"
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        if self.expected is not None and scope["path"] != "/health" and not hmac.compare_digest(given, self.expected):
            answer = failure(401, "The API key is missing or wrong. Send `Authorization: Bearer KEY`.")
            await answer(scope, receive, counting)
            return
        body = await self._body(receive) if scope["method"] == "POST" else b""
        if body is None:
            answer = failure(413, f"The request has more than {self.limits.max_body_bytes} bytes.")
            await answer(scope, receive, counting)
            return
        is_read = False

        async def again() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, counting)

    async def _body(self, receive: Receive) -> bytes | None:
        """Read a request, up to the most that it may have."""
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return body
            body += message.get("body", b"")
            if len(body) > self.limits.max_body_bytes:
                return None
            if not message.get("more_body"):
                return body


async def _invalid(request: HttpRequest, error: Exception) -> Response:
    """Say what is wrong with a body."""
    assert isinstance(error, RequestValidationError)
    problems = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"] if part != "body")
        problems.append(f"{place}: {item['msg']}" if place else str(item["msg"]))
    return failure(400, "The request cannot be read: " + "; ".join(problems))


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    """Answer a wrong path or verb in OpenAI's form."""
    assert isinstance(error, HTTPException)
    return failure(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
