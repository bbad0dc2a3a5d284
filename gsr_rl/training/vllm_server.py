"""A vLLM server as the trainer's engine: deadlines, errors on all ranks alike, and weights by disk on a CPU."""

import shutil
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, gather_object
from requests.adapters import HTTPAdapter
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from urllib3.util.retry import Retry


class ServerVLLM(VLLMGeneration):
    """The trainer's engine in `vllm_mode: server`, put in the place of TRL's `VLLMGeneration`.

    TRL pushes weights by NCCL, which needs a GPU in the trainer. Without one they are saved to `exchange_folder`,
    which the server must reach under the same path, and the server reloads them (gsr_rl/server_worker.py).

    Args:
        request_timeout: Seconds that one answer of the server may take.
        exchange_folder: Where weights are handed over.
        longest_request: Longest prompt plus completion that the run may ask for, in tokens.

    Attributes:
        context_length: Tokens of a prompt and its completion that the server takes, on all ranks; None if unknown.

    Raises:
        RuntimeError: On all ranks, if the server is away, slow or answers with an error. One exception: if it fails
            while weights go by NCCL, TRL raises on the main process alone, and the launcher ends the others.
    """

    def __init__(self, *args, request_timeout: float, exchange_folder: str, longest_request: int, **kwargs):
        self.request_timeout, self.exchange_folder = request_timeout, Path(exchange_folder)
        self.longest_request = longest_request
        self.sync_seconds = 0.0
        self.context_length: int | None = None
        super().__init__(*args, **kwargs)

    @property
    def _by_disk(self) -> bool:
        return self.accelerator.device.type != "cuda"

    @property
    def _url(self) -> str:
        return self.server_base_url or f"http://{self.server_host}:{self.server_port}"

    def _init_vllm(self):
        """TRL connects and opens an NCCL group, and its errors are the main process's; ours reach all ranks."""
        self.context_length = self._ask_on_main(self._connect)

    def _connect(self) -> int | None:
        """A client with our deadlines, on a GPU the NCCL group with vLLM's. Returns the server's context length."""
        self.vllm_client = VLLMClient(self._url, group_port=self.group_port, connection_timeout=self.server_timeout)
        session = self.vllm_client.session
        session.request = partial(session.request, timeout=self.request_timeout)
        # TRL's session goes on trying for a minute or more; ours gives up on a server that is gone within seconds.
        again = {"connect": 2, "read": 0, "status": 3, "status_forcelist": [502, 503], "allowed_methods": None}
        again = Retry(**again, backoff_factor=0.5)
        for scheme, adapter in list(session.adapters.items()):
            session.mount(scheme, HTTPAdapter(max_retries=again, pool_maxsize=adapter._pool_maxsize))
        length = self._served_context()
        if not self._by_disk:
            self.vllm_client.init_communicator(device=self.accelerator.device)
        return length

    def _served_context(self) -> int | None:
        response = self.vllm_client.session.get(f"{self.vllm_client.base_url}/v1/models")
        response.raise_for_status()
        length = response.json()["data"][0].get("max_model_len")
        if length and length < self.longest_request:
            raise ValueError(
                f"its context is {length} tokens, and the longest prompt and completion of this run have "
                f"{self.longest_request}: start it with --max-model-len {self.longest_request}, or lower "
                "max_refinement_prompt_length, max_refinement_length or max_completion_length"
            )
        return length

    @contextmanager
    def awake(self):
        """A server is always awake."""
        yield

    def stream(self) -> None:
        """A server takes whole lists of prompts."""
        return None

    def generate(self, prompts, images, num_generations, profiler=None):
        """TRL lets the main process raise alone while the others wait; here all ranks raise the same error."""
        everyone = gather_object(prompts)
        answer = self._ask_on_main(
            lambda: self.vllm_client.generate(
                prompts=everyone[::num_generations],
                n=num_generations,
                repetition_penalty=self.repetition_penalty,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p or 0.0,
                max_tokens=self.max_completion_length,
                logprobs=self.logprobs,
                structured_outputs_regex=self.structured_outputs_regex,
                generation_kwargs=self.generation_kwargs,
            )
        )
        first = self.accelerator.process_index * len(prompts)
        mine = slice(first, first + len(prompts))
        return prompts, answer["completion_ids"][mine], answer["logprobs"][mine], answer["logprob_token_ids"][mine]

    def sync_weights(self):
        """TRL broadcasts tensor by tensor over NCCL; without a GPU they go by disk."""
        start = time.perf_counter()
        if self._by_disk:
            self._push_by_disk()
        else:
            self._ask_on_main(self._check_health)  # TRL's push fails on the main process alone
            super().sync_weights()
        self.sync_seconds += time.perf_counter() - start

    def _check_health(self) -> None:
        self.vllm_client.session.get(f"{self.vllm_client.base_url}/health").raise_for_status()

    def _push_by_disk(self) -> None:
        state = {}
        for name, parameter in self._iter_named_params():  # every rank takes part: under ZeRO-3 this gathers
            if self.accelerator.is_main_process:
                state[name] = parameter.detach().to("cpu", copy=True).contiguous()
        self._ask_on_main(lambda: self._save_and_reload(state))

    def _save_and_reload(self, state: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        model = self.accelerator.unwrap_model(self.model)
        getattr(model, "base_model", model).config.save_pretrained(self.exchange_folder)
        save_file(state, self.exchange_folder / "model.safetensors", metadata={"format": "pt"})
        call = {"method": "reload_from_disk", "args": [str(self.exchange_folder.resolve())]}
        url = f"{self.vllm_client.base_url}/collective_rpc"
        response = self.vllm_client.session.post(url, json=call)
        results = response.json().get("results") if response.status_code == 200 else None
        if not results or any(str(result) != "True" for result in results):  # the server turns results into text
            raise RuntimeError(
                f"it does not take new weights ({response.status_code}: {response.text[:200]}); start it with "
                "VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls gsr_rl.server_worker.ReloadFromDisk"
            )
        self.vllm_client.reset_prefix_cache()
        shutil.rmtree(self.exchange_folder, ignore_errors=True)

    def _ask_on_main(self, ask):
        """What `ask` returns on the main process, on all ranks; an error of it on all ranks too."""
        answer_and_problem = [None, None]
        if self.accelerator.is_main_process:
            try:
                answer_and_problem[0] = ask()
            except Exception as error:
                answer_and_problem[1] = f"{type(error).__name__}: {error}"
        broadcast_object_list(answer_and_problem, from_process=0)
        answer, problem = answer_and_problem
        if problem is not None:
            raise RuntimeError(
                f"the vLLM server at {self._url} failed (deadline {self.request_timeout:g} s per answer): {problem}. "
                "Checkpoints are whole: fix the server and start the same command with resume_from_checkpoint true"
            )
        return answer
