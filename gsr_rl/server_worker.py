"""What a vLLM server must be started with so that a trainer without a GPU can give it new weights.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs \\
        --worker-extension-cls gsr_rl.server_worker.ReloadFromDisk
"""


class ReloadFromDisk:
    """Extension of vLLM's worker: the server's `/collective_rpc` calls its method by name."""

    def reload_from_disk(self, path: str, version: str) -> str:
        """Take the weights of the model folder `path`, in place.

        Returns:
            The version that stands in the file that was read.

        Raises:
            ValueError: Another version than `version`: a network disk has handed out an older file.
        """
        from safetensors import safe_open
        from vllm.config import set_current_vllm_config

        from gsr_rl.training.vllm_colocated import repack_tied_head

        with safe_open(f"{path}/model.safetensors", "pt") as file:
            read = (file.metadata() or {}).get("version")
        if read != version:
            raise ValueError(f"{path} holds the weights {read}, not {version}")
        runner = self.model_runner
        with set_current_vllm_config(runner.vllm_config):
            runner.reload_weights(weights_path=path)
            repack_tied_head(runner)
        return read
