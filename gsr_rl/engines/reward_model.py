"""A reward model: a sequence-classification model that says how good a solution of a problem is."""

import gc

from gsr_rl.engines.local import has_gpu
from gsr_rl.refinement.prompts import candidate_text


def check_reward_model(name: str) -> None:
    """Look at the configuration alone of a model by path or Hub name.

    Raises:
        ValueError: It cannot be read, or is no classifier with one label or two.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"reward_model={name} cannot be read ({error}): name a folder or a model on the Hub"
        ) from None
    for message in reward_model_messages(name, config.to_dict()):
        raise ValueError(message)


class RewardModel:
    """Scores solutions.

    Args:
        name: Path or Hub name of an `AutoModelForSequenceClassification` with one label (a score) or two (wrong,
            right): `check_reward_model`.
        batch_size: Solutions scored at once.
    """

    def __init__(self, name: str, batch_size: int = 8):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.batch_size = batch_size
        self.tokenizer = AutoTokenizer.from_pretrained(name, truncation_side="left")
        self._model = AutoModelForSequenceClassification.from_pretrained(name, dtype="auto").eval()
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self._model.config.pad_token_id is None:  # it finds a row's last token by it
            self._model.config.pad_token_id = self.tokenizer.pad_token_id
        self._model.to("cuda" if has_gpu() else "cpu")
        positions = getattr(self._model.config, "max_position_embeddings", None) or 4096
        self.max_length = min(positions, self.tokenizer.model_max_length)  # RoBERTa's first positions are no token's

    def scores(self, problem: str, solutions: list[str]) -> list[float | None]:
        """The score of each solution as a logit; None for one without text after its thinking part.

        A text that is too long for the model loses its front.
        """
        import torch

        texts = [candidate_text(solution) for solution in solutions]
        places = [place for place, text in enumerate(texts) if text]
        scores: list[float | None] = [None] * len(solutions)
        for start in range(0, len(places), self.batch_size):
            part = places[start : start + self.batch_size]
            inputs = self.tokenizer(
                [self._text(problem, texts[place]) for place in part],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.max_length,
                add_special_tokens=self.tokenizer.chat_template is None,
            )
            wanted = {"input_ids", "attention_mask"} & set(inputs)
            with torch.inference_mode():
                logits = self._model(**{key: inputs[key].to(self._model.device) for key in wanted}).logits.float()
            values = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
            for place, value in zip(part, values.tolist(), strict=True):
                scores[place] = value
        return scores

    def _text(self, problem: str, solution: str) -> str:
        """Problem and solution as the chat that the model was trained on, or one below the other."""
        if self.tokenizer.chat_template is None:
            return f"{problem}\n\n{solution}"
        chat = [{"role": "user", "content": problem}, {"role": "assistant", "content": solution}]
        return self.tokenizer.apply_chat_template(chat, tokenize=False)

    def close(self) -> None:
        """Free the weights."""
        import torch

        self._model = None
        gc.collect()
        if has_gpu():
            torch.cuda.empty_cache()


def reward_model_messages(name: str, config: dict) -> list[str]:
    """What is wrong with a reward model of this config.json: a classifier with one label or two is expected."""
    kinds = config.get("architectures") or []
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        return [
            f"reward_model={name} is a {', '.join(kinds) or 'model of no stated kind'}: a model with a "
            "...ForSequenceClassification head is expected"
        ]
    number = len(config.get("id2label") or {0: 0, 1: 1})
    if number in (1, 2):
        return []
    return [f"reward_model={name} has {number} labels: one (a score) or two (wrong, right) are expected"]
