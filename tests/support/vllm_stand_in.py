"""A server on loopback that answers as `vllm serve` does to the trainer, with completions and faults set by a test.

Requests wait while it is paused, weights have a version, and `kill` ends it as SIGKILL does: without a word.
"""

import asyncio
import json
import threading

from aiohttp import web
from safetensors import safe_open


class StandIn:
    """`with StandIn(answer) as server: server.url`.

    Args:
        answer: (prompt ids, place) to token ids of a completion; `None` for the last of them stands for one cut off.
        seconds: How long a completion takes.
        port: Of an earlier one, to stand in for its restart.
    """

    def __init__(self, answer=lambda ids, place: [5, 6], seconds: float = 0.0, port: int = 0, max_model_len=512):
        self.answer, self.seconds, self.max_model_len = answer, seconds, max_model_len
        self.version = "default"
        self.calls: list[str] = []  # paths of POSTs, in order, and `done` for each completion
        self.prompts: list[list[int]] = []
        self.salts: list[str] = []  # of the prompts' caches
        self.pauses: list[dict[str, str]] = []  # what each was asked for with
        self.in_flight = self.most_in_flight = 0
        self.faults: dict[str, list] = {}  # path -> what to answer instead, from now on, one after the other
        self.pushes: list[str] = []  # versions
        self.logprobs_mode = "processed_logprobs"
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._run(self._start(port))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _start(self, port: int) -> None:
        self._going = asyncio.Event()
        self._going.set()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        """Cut all connections, and take no more."""

        async def end():
            for connection in list(self._runner.server.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            await self._runner.cleanup()

        if self._runner.server is not None:
            self._run(end())

    async def _handle(self, request: web.Request) -> web.Response:
        path = "/" + request.match_info["path"]
        body = json.loads(await request.text() or "{}")
        if request.method == "POST":
            self.calls.append(path)
        if path == "/pause":
            self.pauses.append(dict(request.query))
        if self.faults.get(path):
            fault = self.faults[path].pop(0)
            if fault == "hang":
                await asyncio.sleep(600)
            if fault == "cut":
                request.transport.abort()
            if isinstance(fault, int):
                return web.Response(status=fault, text=f"fault {fault}")
            return web.json_response(fault)
        return web.json_response(await getattr(self, path.strip("/").replace("/", "_"))(body))

    async def health(self, body):
        return {}

    async def server_info(self, body):
        return {"vllm_config": {"model_config": {"logprobs_mode": self.logprobs_mode}}}

    async def v1_models(self, body):
        return {"data": [{"id": "served", "max_model_len": self.max_model_len}]}

    async def weight_info(self, body):
        return {"weight_version": self.version}

    async def pause(self, body):
        self._going.clear()
        return {"status": "paused"}

    async def resume(self, body):
        self._going.set()
        return {"status": "resumed"}

    async def update_weight_version(self, body):
        self.version = body["new_version"]
        return {"success": True}

    async def collective_rpc(self, body):
        assert body["method"] == "reload_from_disk" and not self._going.is_set()
        with safe_open(f"{body['args'][0]}/model.safetensors", "pt") as file:
            self.pushes.append(file.metadata()["version"])
        return {"results": [self.pushes[-1]]}

    async def start_weight_update(self, body):
        assert not self._going.is_set()
        return {}

    update_weights = start_weight_update

    async def finish_weight_update(self, body):
        self.version = body["weight_version"]
        return {}

    async def v1_completions(self, body):
        self.prompts.append(body["prompt"])
        self.salts.append(body.get("cache_salt", ""))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
            await self._going.wait()
        finally:
            self.in_flight -= 1
        self.calls.append("done")
        return {"choices": [self._choice(body, place) for place in range(body["n"])]}

    def _choice(self, body: dict, place: int) -> dict:
        ids = self.answer(body["prompt"], place)
        reason = "length" if ids[-1] is None else "stop"
        ids = [token for token in ids if token is not None][: body["max_tokens"]]
        values = {"tokens": [f"token_id:{token}" for token in ids], "token_logprobs": [-0.5] * len(ids)}
        return {"index": place, "finish_reason": reason, "token_ids": ids, "logprobs": values}
