"""What a vLLM server must be started with so that a trainer without a GPU can give it new weights.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs \\
        --worker-extension-cls gsr_rl.server_worker.ReloadFromDisk
"""


class ReloadFromDisk:
    """Extension of vLLM's worker: the server's `/collective_rpc` calls its method by name."""

    def reload_from_disk(self, path: str) -> bool:
        """Take the weights of the model folder `path`, in place, and forget cached prefixes.

        Returns:
            True, so that an answer without it tells of a server without this extension.
        """
        from vllm.config import set_current_vllm_config

        from gsr_rl.training.vllm_colocated import repack_tied_head

        runner = self.model_runner
        with set_current_vllm_config(runner.vllm_config):
            runner.reload_weights(weights_path=path)
            repack_tied_head(runner)
        return True
