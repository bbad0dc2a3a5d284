"""`gsr-serve`: an OpenAI-compatible server in front of a vLLM server, which answers by candidates and a refinement.

    python -m vllm.entrypoints.openai.api_server --model PATH_OR_HUB_ID --port 8000
    gsr-serve --model PATH_OR_HUB_ID --backend http://127.0.0.1:8000/v1 --port 8080

The order in which a request is looked at: its key (401), its size (413), what it says (422, 404), whether the backend
is there (503), whether there is a place (429). Nothing of it reaches the backend before. All rules: docs/serving.md.
"""

import asyncio
import logging
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from gsr_rl.command_line import asks_for_help, fields_of, help_of, of_type, read
from gsr_rl.refinement.settings import with_chat_template
from gsr_rl.serving.config import SHORT_NAMES, ServeConfig

logger = logging.getLogger("gsr_rl.serving")


class Server:
    """The application and what it holds: the model's tokenizer, and a `Backend` whose `find` has returned."""

    def __init__(self, config: ServeConfig, tokenizer, backend):
        from gsr_rl.serving.job import Metrics, Shared
        from gsr_rl.serving.limits import Keys, Places

        self.config, self.backend = config, backend
        self.name = config.served_model_name or Path(config.model).name
        self.settings = config.solve_settings().resolved(backend.context_length)
        self.keys, self.places = Keys(config.keys()), Places(config.max_running, config.max_waiting)
        self.metrics = Metrics(self.places, backend)
        self._thread = ThreadPoolExecutor(1, "tokenizer")
        self.shared = Shared(tokenizer, backend, self.places, self.metrics, self._thread,
                             request_seconds=config.request_seconds, forward_seed=config.forward_seed)  # fmt: skip
        self._created = int(time.time())

    def app(self):
        """The FastAPI application. It publishes no schema."""
        from fastapi import FastAPI
        from starlette.exceptions import HTTPException

        from gsr_rl.serving.requests import ApiError

        app = FastAPI(title="gsr-serve", docs_url=None, redoc_url=None, openapi_url=None)
        app.add_exception_handler(ApiError, self._refused)
        app.add_exception_handler(HTTPException, self._no_such_path)
        for method, path, endpoint in (
            ("GET", "/health", self._health),
            ("GET", "/metrics", self._metrics),
            ("GET", "/v1/models", self._models),
            ("GET", "/v1/models/{name:path}", self._model_named),
            ("POST", "/v1/chat/completions", self.answer),
        ):
            app.add_route(path, endpoint, methods=[method])
        return app

    async def _refused(self, _, error):
        self.metrics.requests.labels(str(error.status)).inc()
        return json_response(error.body(), error.status, error.headers())

    async def _no_such_path(self, request, error):
        from gsr_rl.serving.requests import ApiError

        return await self._refused(request, ApiError(error.status_code, "not_found", str(error.detail)))

    async def _health(self, _):
        up = self.backend.up
        return json_response({"status": "ok" if up else "no backend"}, 200 if up else 503)

    async def _metrics(self, _):
        from fastapi.responses import Response

        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, request):
        self.keys.check(request.headers.get("authorization"))
        return json_response({"object": "list", "data": [self._model()]})

    async def _model_named(self, request):
        self.keys.check(request.headers.get("authorization"))
        self._known(request.path_params["name"])
        return json_response(self._model())

    def _model(self) -> dict:
        model = {"id": self.name, "object": "model", "created": self._created, "owned_by": "gsr-rl"}
        return model | {"max_model_len": self.backend.context_length}

    def _known(self, name: str) -> None:
        from gsr_rl.serving.requests import ApiError

        if name != self.name:
            raise ApiError(404, "model_not_found", f"there is no model of this name, only {self.name}", "model")

    async def answer(self, request):
        """Answer one chat request, or raise `ApiError`."""
        from fastapi.responses import Response
        from starlette.requests import ClientDisconnect

        from gsr_rl.serving.job import Job
        from gsr_rl.serving.requests import ApiError

        try:
            parsed, settings = await self._read(request)
        except ClientDisconnect:
            self.metrics.requests.labels("499").inc()
            return Response(status_code=499)
        job = Job(self.shared, parsed, settings)
        try:
            # An error that comes before a stream's first event still has a status of its own.
            work = self._first_event(job) if parsed.stream else job.wait()
            here = await self._still_here(request, work)
        except BaseException:
            job.cancel()
            raise
        if not here:
            job.cancel()
            self._ended(job, 499)
            return Response(status_code=499)
        if isinstance(job.outcome, ApiError):
            self._log(job, job.outcome.status)
            raise job.outcome
        if parsed.stream:
            return stream_response(job, self.config, self._ended)
        self._ended(job, 200)
        return json_response(job.body(job.outcome), headers={"X-Request-Id": job.id})

    async def _read(self, request):
        """The request in a body, and how to solve it. Raises `ApiError` for one that is not to be answered."""
        from gsr_rl.serving.limits import read_body
        from gsr_rl.serving.requests import ApiError, parse_body, settings_of

        self.keys.check(request.headers.get("authorization"))
        body = await read_body(request, self.config.max_body_bytes, self.config.body_seconds)
        parsed = await asyncio.to_thread(parse_body, body)  # a hostile one takes its time
        self._known(parsed.model)
        settings = settings_of(parsed, self.config, self.settings)
        if not self.backend.up:
            raise ApiError(503, "backend_unavailable", "the model's server does not answer", retry_after=5)
        return parsed, settings

    async def _first_event(self, job) -> None:
        """Until the stream has something to say, at most `keep_alive_seconds`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(job.speaks.wait(), self.config.keep_alive_seconds)

    async def _still_here(self, request, work) -> bool:
        """Whether the client is still there when `work` is done; the work is cancelled when the client goes."""

        async def gone():
            while (await request.receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return tasks[0].done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, job, status: int) -> None:
        self.metrics.requests.labels(str(status)).inc()
        self._log(job, status)

    def _log(self, job, status: int) -> None:
        """One line per request, without any of its text."""
        solution, more = job.outcome, ""
        if status == 200 and hasattr(solution, "usage"):
            more = f", {solution.usage.completion_tokens} tokens, {solution.seconds:.2f} s"
            more += f", degraded: {solution.degraded} {solution.reason}".rstrip() if solution.degraded else ""
        logger.info("%s %s %s%s", job.id, status, job.settings.mode, more)

    async def close(self) -> None:
        """End the look-out for the backend, and the thread."""
        await self.backend.close()
        self._thread.shutdown(wait=False, cancel_futures=True)


def json_response(content: dict, status: int = 200, headers: dict[str, str] | None = None):
    """A JSON answer; FastAPI is imported once there is something to answer, not for `--help`."""
    from fastapi.responses import JSONResponse

    return JSONResponse(content, status, headers)


def stream_response(job, config: ServeConfig, ended):
    """Server-sent events of a job, which ends with the connection, whoever ends that; `ended` is told how."""
    from fastapi.responses import StreamingResponse

    class Stream(StreamingResponse):
        async def __call__(self, scope, receive, send):
            try:
                # A client that takes nothing off the line must not hold it for ever.
                with suppress(TimeoutError):
                    async with asyncio.timeout(config.request_seconds + 60):
                        await super().__call__(scope, receive, send)
            finally:
                # An error that came in the middle has its own status, although the client has been told 200.
                ended(job, 499 if job.outcome is None else getattr(job.outcome, "status", 200))
                job.cancel()

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "X-Request-Id": job.id}
    return Stream(job.chunks(config.keep_alive_seconds), media_type="text/event-stream", headers=headers)


async def serve(config: ServeConfig) -> None:
    """Serve until a signal comes; requests that are being answered are answered first.

    Raises `ValueError` where the backend does not answer, or does not fit the configuration.
    """
    import os

    from transformers import AutoTokenizer

    from gsr_rl.serving.backend import Backend
    from gsr_rl.serving.limits import allow_files, listener

    allow_files(config)
    tokenizer = with_chat_template(AutoTokenizer.from_pretrained(config.model), config.chat_template, config.model)
    key = os.environ.get(config.backend_key_env, "").strip() if config.backend_key_env else ""
    backend = Backend(config.backend, key, config.backend_model, config.backend_api, config.backend_retries,
                      config.max_model_length, tokenizer, config.max_backend_requests)  # fmt: skip
    try:
        await backend.find(config.backend_start_seconds)
        server = Server(config, tokenizer, backend)
    except BaseException:
        await backend.close()
        raise

    def ready(port: int) -> None:
        host = f"[{config.host}]" if ":" in config.host else config.host
        logger.info("serving %s at http://%s:%s/v1, in front of %s", server.name, host, port, config.backend)

    try:
        await listener(server.app(), config, ready).serve()
    finally:
        await server.close()
        logger.info("good-bye")


def help_text() -> str:
    """What `--help` prints: every key of `ServeConfig`."""
    usage = "usage: gsr-serve --model PATH_OR_HUB_ID [--config FILE.yaml] [--KEY VALUE ...]"
    return "\n\n".join([usage, *__doc__.split("\n\n")[:2]]) + "\n" + help_of(fields_of("ServeConfig").values())


def parse(argv: list[str]) -> ServeConfig:
    """The configuration of a command line. Raises `ValueError` for a key or value that is wrong."""
    keys = fields_of("ServeConfig")
    values, stray = read(argv, keys, "--help", short=SHORT_NAMES, positional=True)
    if stray:
        raise ValueError(f"stray argument {stray[0]!r}: write --key value")
    return ServeConfig(**of_type(values, keys))


def main(argv: list[str] | None = None) -> None:
    """The console script. Exit codes: 0 after SIGTERM, 130 after Ctrl-C, 2 on what the user can fix."""
    argv = sys.argv[1:] if argv is None else argv
    if asks_for_help(argv):
        print(help_text())
        sys.exit(0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for name in ("httpx", "openai"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # uvicorn hands the signal that ended it to who was there before: that is then the end, and no error.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        check_packages()
        config = parse(argv)
        config.solve_settings()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve(config))
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"gsr-serve: error: {error}", file=sys.stderr)
        sys.exit(2)


def check_packages() -> None:
    """What vLLM brings along is there. Raises `ValueError` with what to install otherwise."""
    needed = ("fastapi", "openai", "prometheus-client", "uvicorn")
    missing = [name for name in needed if not find_spec(name.replace("-", "_"))]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} not installed: pip install {' '.join(missing)}, or vLLM, which needs them"
        )


def _terminated(*_) -> None:
    raise SystemExit(0)


def _loop_factory():
    """uvloop's, where it is installed: about twice as fast."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
