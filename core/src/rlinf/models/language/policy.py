"""Language models as policies: an answer is one chunk of actions, a token is an action."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from rlinf.models.embodiment.base_policy import BasePolicy, check_mode
from rlinf.models.embodiment.modules.value_head import ValueHead
from rlinf.models.factory import config_errors, plugin_config
from rlinf.models.language.actor import ActorAL, ActorLanguage, ActorVL
from rlinf.models.language.config import ActorConfig, LanguageConfig
from rlinf.models.language.generation import GenerationConfig
from rlinf.models.language.loading import auto_class
from rlinf.models.language.lora import linear_layers
from rlinf.models.language.media import PALIGEMMA, without_pieces
from rlinf.models.language.modality import ActorModality, supports_parameter
from rlinf.models.language.text import (
    END,
    MEDIA_END,
    MEDIA_START,
    PAD,
    PIECE,
    VIDEO,
    CharacterTokenizer,
    TextProcessor,
    pad_left,
    text_processor,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: An action that is no token: what follows an answer's end.
NO_TOKEN = -1


class LanguagePolicy(BasePolicy):
    """An actor with its tokenizer and, for PPO, a value per token."""

    def __init__(
        self,
        actor: ActorLanguage,
        processor: TextProcessor,
        config: ActorConfig,
        *,
        length: int,
        critic: bool,
    ) -> None:
        """length: longest answer, in tokens. critic: whether there is a value head."""
        super().__init__()
        self.actor, self.processor, self.length = actor, processor, length
        self.temperature = config.temperature
        self._refresh: Callable[[], bool] | None = None
        ids = processor.tokenizer
        self._generation = GenerationConfig(
            max_new_tokens=length,
            temperature=config.temperature,
            eos_token_ids=(ids.eos_token_id,),
            pad_token_id=ids.pad_token_id,
            max_num_seqs=config.max_num_seqs,
            cache_implementation=config.cache_implementation,
        )
        width = int(actor.model.config.get_text_config().hidden_size)
        self.value_head = ValueHead(width, (), bias_last=True) if critic else None
        self._no_split_modules = whole_blocks(actor.model)
        self.lora_targets = [
            re.escape(f"actor.model.{path}") for path in linear_layers(actor.model, towers=False)
        ]

    def prepare_rollout(self, refresh: Callable[[], bool] | None) -> None:
        """As of `BasePolicy`; starts vLLM where the configuration asks for it."""
        if refresh is not None:
            self.actor.check_refresh()
        self.actor.start_engine()
        self._refresh = refresh

    def predict_action_batch(
        self,
        env_obs: dict[str, Any],
        mode: str = "train",
        compute_values: bool = True,
        *,
        generators: Sequence[torch.Generator] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Answer prompts.

        Args:
            env_obs: task_descriptions, list[str] of length B; main_images or audios for models that see or
                hear (`TextProcessor.prompts`).
            mode: "train" samples, "eval" takes the most likely tokens.
            generators: one per prompt; None: of torch's global generator.

        Returns:
            actions float32 [B, length, 1], token ids, -1 after an answer's end; in mode "train" what
            `BasePolicy` says, with entropy float32 [B, length] among forward_inputs.
        """
        check_mode(mode)
        prompts, seen = self.processor.prompts(env_obs["task_descriptions"], env_obs)
        device = next(self.parameters()).device
        ids, mask = pad_left(prompts, max(map(len, prompts)), self._generation.pad_token_id or 0)
        ids, mask = ids.to(device), mask.to(device)
        inputs = {name: x.to(device) for name, x in seen.items()}
        if mode == "train" and generators is None:
            seeds = torch.randint(2**62, (len(ids),)).tolist()
            generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        train = mode == "train"
        sequences, mask, action_mask, drawn = self.actor.sample(
            ids,
            mask,
            generators=generators if train else None,
            config=self._generation,
            refresh=self._refresh if train else None,
            **self.processor.flat(ids, inputs),
        )
        answers = sequences[:, ids.shape[1] :].where(action_mask, NO_TOKEN)
        answers = nn.functional.pad(answers, (0, self.length - answers.shape[1]), value=NO_TOKEN)
        actions = answers.unsqueeze(-1).float()
        if mode == "eval":
            return actions, {}
        # Rollouts of several workers are joined: all rows have the width of the longest that may be.
        left, right = (
            self.processor.max_prompt_length - ids.shape[1],
            self.length + ids.shape[1] - mask.shape[1],
        )
        forward_inputs = {
            "sequences": nn.functional.pad(sequences, (left, right)),
            "attention_mask": nn.functional.pad(mask, (left, right)),
            **inputs,
        }
        out = self.default_forward(forward_inputs)
        if drawn is not None:
            drawn = nn.functional.pad(drawn, (0, self.length - drawn.shape[1])).unsqueeze(-1)
        result = {"prev_logprobs": out["logprobs"] if drawn is None else drawn}
        if compute_values and self.value_head is not None:
            result["prev_values"] = out["values"]
        entropy = out["entropy"].squeeze(-1)
        return actions, {**result, "forward_inputs": {**forward_inputs, "entropy": entropy}}

    def default_forward(self, forward_inputs: dict[str, Tensor], **kwargs: Any) -> dict[str, Any]:
        """As of `BasePolicy`: logprobs and entropy float32 [B, length, 1], values float32 [B, length]; zero
        after an answer's end."""
        sequences, mask = forward_inputs["sequences"], forward_inputs["attention_mask"]
        prompt = sequences.shape[1] - self.length
        # Columns that are padding in every row cost nothing.
        used = mask.any(0).nonzero().squeeze(-1)
        first, last = int(used[0]), max(int(used[-1]) + 1, prompt + 1)
        sequences, mask, count = sequences[:, first:last], mask[:, first:last], last - prompt
        seen = {k: v for k, v in forward_inputs.items() if supports_parameter(self.actor, k)}
        read = sequences
        if seen and self.processor.media is not None:
            pad = self._generation.pad_token_id or 0
            read = without_pieces(sequences, count, self.processor.media.tokens, pad)
        hidden = self.actor.hidden_states(read, mask, **self.processor.flat(read, seen, count))
        scores = self.actor.scores(hidden, sequences, count, mask, temperature=self.temperature)
        right = (0, self.length - count)
        out = {
            "logprobs": nn.functional.pad(scores.logprobs, right).unsqueeze(-1),
            "entropy": nn.functional.pad(scores.entropy, right).unsqueeze(-1),
        }
        if self.value_head is not None:
            values = self.value_head(hidden[:, -count - 1 : -1]).squeeze(-1)
            out["values"] = nn.functional.pad(values * mask[:, -count:], right)
        return out

    def sft_forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Cross-entropy of answers.

        Args:
            batch: rows, mappings with prompt and answer; main_images or audios for models that see or hear;
                action_is_pad bool [B, 1], rows that do not count.

        Returns:
            loss, a mean over the rows of the mean over each answer's tokens; answer_nll, the mean over the
            rows of the sum over each answer's tokens.
        """
        texts = [str(row["prompt"]) for row in batch["rows"]]
        prompts, seen = self.processor.prompts(texts, batch)
        answers = [self.processor.answer(str(row["answer"])) for row in batch["rows"]]
        device = next(self.parameters()).device
        count = max(map(len, answers))
        left, left_mask = pad_left(prompts, max(map(len, prompts)), 0)
        # Padding on the right is padding on the left, turned around.
        right, right_mask = (x.flip(1) for x in pad_left([row[::-1] for row in answers], count, 0))
        sequences, mask = (
            torch.cat([left, right], 1).to(device),
            torch.cat([left_mask, right_mask], 1).to(device),
        )
        inputs = self.processor.flat(sequences, {name: x.to(device) for name, x in seen.items()}, count)
        hidden = self.actor.hidden_states(sequences, mask, **inputs)
        nll = -self.actor.scores(hidden, sequences, count, mask).logprobs
        counts = (~batch["action_is_pad"][:, 0]).float().to(device)
        rows = nll.sum(-1) / mask[:, -count:].sum(-1)
        total = counts.sum().clamp(min=1)
        return {"loss": (rows * counts).sum() / total, "answer_nll": (nll.sum(-1) * counts).sum() / total}


def build_text(cfg: DictConfig, torch_dtype: torch.dtype) -> LanguagePolicy:
    """The policy of `model_type: causal_lm`."""
    return _build(cfg, torch_dtype, ActorLanguage)


def build_vision(cfg: DictConfig, torch_dtype: torch.dtype) -> LanguagePolicy:
    """The policy of `model_type: vision_language`."""
    return _build(cfg, torch_dtype, ActorVL)


def build_audio(cfg: DictConfig, torch_dtype: torch.dtype) -> LanguagePolicy:
    """The policy of `model_type: audio_language`."""
    return _build(cfg, torch_dtype, ActorAL)


def _build(cfg: DictConfig, torch_dtype: torch.dtype, actor_class: type[ActorLanguage]) -> LanguagePolicy:
    config = plugin_config(cfg, ActorConfig)
    with config_errors(cfg):
        processor, source = processor_and_model(cfg, config, actor_class.modality)
        vllm = config.vllm
        if vllm is not None:
            longest = processor.max_prompt_length + cfg.num_action_chunks
            vllm = {"max_model_len": longest, "max_num_seqs": config.max_num_seqs, **vllm}
        actor = actor_class(
            source,
            attn_implementation=config.attn_implementation,
            packing_samples=config.packing_samples,
            vllm=vllm,
        )
        policy = LanguagePolicy(
            actor, processor, config, length=cfg.num_action_chunks, critic=cfg.add_value_head
        )
    return policy.to(torch_dtype)


#: What a configuration or a folder must hold for models of each kind.
_WANTED: Final = {
    ActorModality.LANGUAGE_ONLY: "a model that only reads",
    ActorModality.VISION_LANGUAGE: "a model of the Qwen-VL families or PaliGemma",
    ActorModality.AUDIO_LANGUAGE: "a model of Qwen2-Audio",
}


def processor_and_model(
    cfg: DictConfig, config: LanguageConfig, modality: ActorModality
) -> tuple[TextProcessor, str | nn.Module]:
    """The processor, and the folder of `model.model_path` or a new model.

    Raises ValueError: neither is described, both are, or the model is of another kind.
    """
    processor = text_processor(config, cfg.model_path)
    if processor.modality is not modality:
        raise ValueError(f"model_type {cfg.model_type}: expected {_WANTED[modality]}")
    return processor, cfg.model_path or _new_model(config, processor.tokenizer, modality)


def _new_model(config: LanguageConfig, tokenizer: Any, modality: ActorModality) -> nn.Module:
    """The model that `config.config` describes, with random weights. Raises ValueError."""
    import transformers

    assert config.config is not None and isinstance(tokenizer, CharacterTokenizer)
    given = dict(config.config)
    name = given.pop("model_type", None)
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": None}
    if modality is ActorModality.LANGUAGE_ONLY:
        given |= tokens
    else:
        given["text_config"] = {**given.get("text_config", {}), **tokens}
    if name == PALIGEMMA:
        given["text_config"]["bos_token_id"] = MEDIA_START
        given |= {"image_token_index": PIECE, "projection_dim": given["text_config"].get("hidden_size")}
    elif modality is ActorModality.VISION_LANGUAGE:
        given |= {"image_token_id": PIECE, "video_token_id": VIDEO}
        given |= {"vision_start_token_id": MEDIA_START, "vision_end_token_id": MEDIA_END}
    elif modality is ActorModality.AUDIO_LANGUAGE:
        given |= {"audio_token_index": PIECE}
    try:
        known = transformers.AutoConfig.for_model(name, **given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"config: {error}") from None
    return auto_class(modality).from_config(known)


def whole_blocks(model: nn.Module) -> list[str]:
    """FSDP2 units: class names of the blocks that transformers keeps whole, as far as the model has them."""
    names = {type(module).__name__ for module in model.modules()}
    return sorted(names.intersection(model._no_split_modules or ()))  # type: ignore[arg-type]


def processor(cfg: DictConfig, schema: type[ActorConfig] = ActorConfig) -> tuple[Any, TextProcessor]:
    """(configuration, processor) of a whole run's configuration, for `get_model_config_and_processor`."""
    config = plugin_config(cfg.model, schema)
    with config_errors(cfg.model):
        return config, text_processor(config, cfg.model.get("model_path"))
