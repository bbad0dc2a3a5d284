"""vLLM servers as the trainer's engine: each rank asks them by itself, and all of them hold the trainer's weights.

Sampling has no collective; errors, and which servers are lost, are exchanged when it is over.
"""

import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import gather_object
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from gsr_rl.training.server_requests import Failed, Server, ServerError, Servers, ServerStream, reason

logger = logging.getLogger(__name__)

START = (
    "start it (vLLM 0.31) with VLLM_SERVER_DEV_MODE=1 and, for a trainer without a GPU, --worker-extension-cls "
    "gsr_rl.server_worker.ReloadFromDisk"
)

# What is in flight stands still, and goes on with its caches. Later requests do not find them: see `cache_salt`.
PAUSE = {"mode": "keep", "clear_cache": "false"}


class ServerVLLM(VLLMGeneration):
    """The trainer's engine in `vllm_mode: server`, put in the place of TRL's `VLLMGeneration`.

    TRL pushes weights by NCCL, which needs a GPU in the trainer. Without one they are saved to `exchange_folder`,
    which the servers must reach under the same path, and they reload them (gsr_rl/server_worker.py). Either way
    requests stand still meanwhile and go on after, with their tokens and what is cached of them.

    Args:
        request_timeout: Seconds that one answer of a server may take.
        exchange_folder: Where weights are handed over.
        longest_request: Longest prompt plus completion that the run may ask for, in tokens.

    Attributes:
        context_length: Tokens of a prompt and its completion that all servers take, on all ranks; None if unknown.

    Raises:
        RuntimeError: On all ranks: a server is away at the start or refuses what the run needs, or none is left. One
            exception: if one fails while weights go by NCCL, the main process alone raises, and the launcher ends the
            others.
    """

    def __init__(self, *args, request_timeout: float, exchange_folder: str, longest_request: int, **kwargs):
        self.request_timeout, self.exchange_folder = request_timeout, Path(exchange_folder)
        self.longest_request = longest_request
        self.sync_seconds = 0.0
        self.context_length: int | None = None
        self._told: set[str] = set()  # lost servers
        self._look: Future | None = None  # at lost servers, since the last push by disk
        super().__init__(*args, **kwargs)

    @property
    def _by_disk(self) -> bool:
        return self.accelerator.device.type != "cuda"

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def _init_vllm(self):
        """TRL connects on the main process and opens an NCCL group; ours is a client on each rank."""
        given = self.server_base_url or f"http://{self.server_host}:{self.server_port}"
        urls = [given] if isinstance(given, str) else given
        self.servers = Servers(urls, self.request_timeout, self.accelerator.process_index)
        self.servers.run = gather_object([f"gsr-{uuid.uuid4().hex[:12]}"])[0]
        self.context_length = self.on_all_ranks("connecting", self._connect)

    def _connect(self) -> int | None:
        """Reach every server; on a GPU the main process opens the NCCL groups. Returns the least context length."""
        connecting = [self.servers.start(self.servers.connect(s, self.server_timeout)) for s in self.servers.all]
        contexts = [(server, length.result()) for server, length in zip(self.servers.all, connecting, strict=True)]
        for server, length in contexts:
            if length and length < self.longest_request:
                raise ValueError(
                    f"{server.url}: its context is {length} tokens, and the longest prompt and completion of this run "
                    f"have {self.longest_request}: start it with --max-model-len {self.longest_request}, or lower "
                    "max_refinement_prompt_length, max_refinement_length or max_completion_length"
                )
            try:
                self.servers.ask(server, "GET", "/weight_info")
            except ServerError as error:
                raise ServerError(f"{error}: it does not tell its weights' version, {START}") from None
        if self.is_main:  # vLLM looks at its environment for this, which takes seconds
            how = {"deadline": self.server_timeout, "params": {"config_format": "json"}}
            answers = [self.servers.ask(server, "GET", "/server_info", **how) for server in self.servers.all]
            self._configs = [answer["vllm_config"] for answer in answers]
        if self.is_main and not self._by_disk:
            self._groups = [self._open_group(server) for server in self.servers.all]
        return min((length for _, length in contexts if length), default=None)

    def _open_group(self, server: Server):
        """The NCCL group of a server's workers and this process, by TRL's client; each has a port of its own."""
        port = self.group_port + server.number
        client = VLLMClient(server.url, group_port=port, connection_timeout=self.server_timeout)
        client.session.request = partial(client.session.request, timeout=self.request_timeout)
        client.init_communicator(device=self.accelerator.device)
        return client

    @property
    def vllm_client(self) -> "ServerVLLM":
        """Whom TRL's trainer asks how the server was started, to warn of log-probabilities that bias the ratio."""
        return self

    def get_server_info(self) -> dict:
        """The configuration of a server, one with other log-probabilities than of the sampled distribution if any."""
        return min(self._configs, key=lambda config: config["model_config"]["logprobs_mode"] == "processed_logprobs")

    @contextmanager
    def awake(self):
        """A server is always awake."""
        yield

    def stream(self) -> ServerStream:
        """The servers, request by request; every rank has a stream of its own."""
        sampling = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p or 0.0,
            "repetition_penalty": self.repetition_penalty,
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if self.structured_outputs_regex is not None:
            sampling["structured_outputs"] = {"regex": self.structured_outputs_regex}
        return ServerStream(self.servers, sampling | self.generation_kwargs)

    def generate(self, prompts, images, num_generations, profiler=None):
        """TRL gathers all ranks' prompts for the main process to send; each rank sends its own."""
        answers = {}
        with self.stream() as stream:
            names = [
                stream.add(ids, num_generations, self.max_completion_length) for ids in prompts[::num_generations]
            ]
            while len(answers) < len(names):
                answers |= {name: (completions, logprobs) for name, completions, logprobs in stream.step()}
        ids = [completion for name in names for completion in answers[name][0]]
        logprobs = [[[value] for value in values] for name in names for values in answers[name][1]]
        return prompts, ids, logprobs, [[[token] for token in completion] for completion in ids]

    def sync_weights(self):
        """TRL broadcasts to one server over NCCL; ours to all, by disk without a GPU, and they echo the version."""
        start, version = time.perf_counter(), f"{self.servers.run}-{self.servers.pushed + 1}"
        if self._by_disk:
            self._push_by_disk(version)
        else:
            self._push_by_nccl(version)
        self.servers.pushed += 1
        self.sync_seconds += time.perf_counter() - start

    def _push_by_disk(self, version: str) -> None:
        state = {}
        for name, parameter in self._iter_named_params():  # every rank takes part: under ZeRO-3 this gathers
            if self.is_main:
                state[name] = parameter.detach().to("cpu", copy=True).contiguous()
        push = lambda: self._save_and_reload(state, version) if self.is_main else []  # noqa: E731
        back = gather_object([self.on_all_ranks("pushing weights", push)])[0]
        self.servers.take_back(back)
        self._told -= {*back}
        for url in back if self.is_main else []:
            logger.warning("the vLLM server at %s is back: it has the weights and gets requests again", url)
        looks = self.is_main and self.servers.lost  # beside the update
        self._look = self.servers.start(self.servers.answering(self.longest_request)) if looks else None

    def _save_and_reload(self, state: dict[str, torch.Tensor], version: str) -> list[str]:
        """Returns the addresses of lost servers that have taken the weights."""
        from safetensors.torch import save_file

        folder = (self.exchange_folder / version).resolve()
        model = self.accelerator.unwrap_model(self.model)
        getattr(model, "base_model", model).config.save_pretrained(folder)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt", "version": version})
        # The first push finds out whether the servers were started as they must be.
        returning = self._look.result() if self._look is not None and self._look.done() else []
        strict = not self.servers.pushed
        back = self.servers.for_each(lambda server: self._reload(server, folder, version), strict, returning)
        shutil.rmtree(self.exchange_folder, ignore_errors=True)
        return back

    async def _reload(self, server: Server, folder: Path, version: str) -> None:
        """One server takes the weights of a folder. Requests stand still meanwhile."""
        call = {"method": "reload_from_disk", "args": [str(folder), version]}
        try:
            await self.servers.json(server, "POST", "/pause", params=PAUSE)
            results = (await self.servers.json(server, "POST", "/collective_rpc", json=call)).get("results")
        except (Failed, ServerError) as error:
            raise ServerError(f"it does not take new weights ({error}); {START}") from None
        if not results or {*results} != {version}:
            raise ServerError(f"its workers have read {results} for {version}: does it see {folder.parent}? {START}")
        await self.servers.json(server, "POST", "/update_weight_version", json={"new_version": version})
        await self.servers.json(server, "POST", "/resume")
        if (echo := await self.servers.version(server)) != version:
            raise ServerError(f"it says that it has the weights {echo}, not {version}")

    def _push_by_nccl(self, version: str) -> None:
        if self._weight_metadata is None:  # as TRL: every rank takes part
            self._weight_metadata = [
                (name, str(weights.dtype).removeprefix("torch."), list(weights.shape))
                for name, weights in self._iter_named_params()
            ]
        self.on_all_ranks("pushing weights", self._check_health)  # a transfer to a server that is gone would hang
        for server in self.servers.alive:  # the same on all ranks
            if self.is_main:
                self._send(server, version)
            else:
                for _ in self._iter_named_params():
                    pass

    def _check_health(self) -> None:
        if self.is_main:
            self.servers.for_each(lambda server: self.servers.json(server, "GET", "/health"), strict=False)

    def _send(self, server: Server, version: str) -> None:
        """Broadcast to one server. NCCL has no deadline, so it runs beside the request that drives the server."""
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        names, dtypes, shapes = (list(column) for column in zip(*self._weight_metadata, strict=True))
        post, group = partial(self.servers.ask, server, "POST"), self._groups[server.number].communicator
        send = partial(packed_nccl_broadcast_producer, group=group, src=0, post_iter_func=lambda item: item[1])
        sender = threading.Thread(target=send, args=(self._iter_named_params(),), daemon=True)
        try:
            post("/pause", params=PAUSE)
            post("/start_weight_update", json={})
            sender.start()
            post("/update_weights", json={"update_info": {"names": names, "dtype_names": dtypes, "shapes": shapes}})
            sender.join(self.request_timeout)
            post("/finish_weight_update", json={"weight_version": version})
            post("/resume")
        except Exception as error:
            raise self._failure(f"pushing weights: {reason(error, self.request_timeout)}") from error

    def on_all_ranks(self, doing: str, action: Callable):
        """What `action` returns here. An error on any rank is raised on all, and which servers are lost is shared."""
        value = problem = cause = None
        try:
            value = action()
        except Exception as error:
            cause, problem = error, reason(error, self.request_timeout)
        reports = gather_object([(problem, self.servers.lost)])
        self.servers.lose({url: why for _, lost in reports for url, why in lost.items()})
        for url, why in self.servers.lost.items():
            if self.is_main and url not in self._told:
                logger.warning("the vLLM server at %s is lost, its requests go to the others: %s", url, why)
            self._told.add(url)
        if problems := [f"{problem} (rank {rank})" for rank, (problem, _) in enumerate(reports) if problem]:
            raise self._failure(f"{doing}: {problems[0]}") from cause
        return value

    def _failure(self, text: str) -> RuntimeError:
        return RuntimeError(
            f"the vLLM servers failed in {text}; a server has {self.request_timeout:g} s for an answer "
            "(server_request_timeout). Checkpoints are whole: fix it and start the same command with "
            "resume_from_checkpoint true"
        )
