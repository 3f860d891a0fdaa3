"""Actors: causal language models with log-probabilities of what they sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from rlinf.models.language.generation import GenerationConfig, Sample, generate
from rlinf.models.language.loading import ActorOptions, load_language_model
from rlinf.models.language.logits import changes_logits, output_logits
from rlinf.models.language.modality import ActorModality, check_inputs
from rlinf.models.language.packing import pack
from rlinf.models.logprobs import entropy_from_logits, linear_log_probs, log_probs_from_logits

if TYPE_CHECKING:
    from rlinf.models.language.vllm_engine import VllmEngine


class Scores(NamedTuple):
    """Log-probabilities and entropies, float32 [B, num_actions]; 0 where the action is padding."""

    logprobs: Tensor
    entropy: Tensor


class ActorLanguage(nn.Module):
    """A causal language model as a policy over tokens.

    From a folder (`from_pretrained` layout) or from a model that exists; every option means the same in both.
    """

    modality: ClassVar[ActorModality] = ActorModality.LANGUAGE_ONLY

    def __init__(self, pretrain_or_model: str | Path | nn.Module, **options: Any) -> None:
        """
        Args:
            pretrain_or_model: a folder, or the model.
            options: fields of `rlinf.models.language.loading.ActorOptions`.

        Raises:
            TypeError: an unknown option. ValueError: a folder that holds no such model.
        """
        super().__init__()
        self.options = ActorOptions.of(options)
        self.model: Any = load_language_model(pretrain_or_model, self.modality, self.options)
        self.options.add_adapters(self.model)
        self._engine: VllmEngine | None = None

    def start_engine(self) -> None:
        """Start vLLM in this process, where it samples the answers. Raises what `VllmEngine` raises."""
        if self.options.vllm is not None and self._engine is None:
            from rlinf.models.language.vllm_engine import VllmEngine

            self._engine = VllmEngine(self.model, self.options.vllm)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute the layers' activations in backward."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def gradient_checkpointing_disable(self) -> None:
        self.model.gradient_checkpointing_disable()

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        generators: Sequence[torch.Generator] | None = None,
        config: GenerationConfig | None = None,
        **inputs: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample continuations of left-padded prompts.

        Args:
            input_ids, attention_mask: int64 [B, P].
            generators: one per sample; None: greedy.
            inputs: what `get_supported_parameters` names.

        Returns:
            sequences and attention_mask int64 [B, P+A]; action_mask bool [B, A]: what was sampled, the end
            token included. On truncation the last token stays what was sampled.
        """
        sample = self.sample(input_ids, attention_mask, generators=generators, config=config, **inputs)
        return sample.sequences, sample.attention_mask, sample.action_mask

    def sample(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        generators: Sequence[torch.Generator] | None = None,
        config: GenerationConfig | None = None,
        refresh: Callable[[], bool] | None = None,
        **inputs: Any,
    ) -> Sample:
        """`generate` with weights that may change between two tokens.

        refresh: called there; changes the weights, or does not, and says so. Answers go on with keys and
        values of the new ones.
        """
        check_inputs(self, inputs)
        self.start_engine()
        given = config or GenerationConfig()
        return generate(
            self.model, input_ids, attention_mask, generators, given, inputs, self._engine, refresh
        )

    def check_refresh(self) -> None:
        """Raises ValueError where weights cannot change between two tokens."""
        from rlinf.models.language.continuous import fits

        if self.options.vllm is not None or not fits(self.model):
            raise ValueError(
                "rollout.interruptible: its answers come whole (vllm, or a model that sees, hears or has "
                "windows); expected one that answers with continuous batching"
            )

    def forward(
        self,
        sequences: Tensor,
        num_actions: int,
        attention_mask: Tensor,
        *,
        temperature: float = 1.0,
        **inputs: Any,
    ) -> Scores:
        """Log-probabilities of the last `num_actions` tokens of each row, and the entropies there.

        Args:
            sequences, attention_mask: int64 [B, S], padded on either side.
            inputs: what `get_supported_parameters` names.
        """
        hidden = self.hidden_states(sequences, attention_mask, **inputs)
        return self.scores(hidden, sequences, num_actions, attention_mask, temperature=temperature)

    def hidden_states(self, sequences: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        """Last hidden states [B, S, H]; the arguments are those of `forward`."""
        check_inputs(self, inputs)
        if self.options.packing_samples:
            return self._packed_hidden(sequences, attention_mask)
        return self.model.model(
            **padded_inputs(self.modality, sequences, attention_mask), **inputs
        ).last_hidden_state

    def scores(
        self,
        hidden: Tensor,
        sequences: Tensor,
        num_actions: int,
        attention_mask: Tensor,
        *,
        temperature: float = 1.0,
    ) -> Scores:
        """`forward` after `hidden_states`, which a value head may want as well."""
        if not 0 < num_actions < sequences.shape[1]:
            raise ValueError(f"num_actions: expected 1 to {sequences.shape[1] - 1}, got {num_actions}")
        valid = attention_mask[:, -num_actions:].bool() & attention_mask[:, -num_actions - 1 : -1].bool()
        targets = sequences[:, -num_actions:]
        at_actions = hidden[:, -num_actions - 1 : -1][valid]
        logp, entropy = self._score(at_actions, targets[valid], temperature)
        shape = hidden.new_zeros(targets.shape, dtype=torch.float32)
        return Scores(shape.masked_scatter(valid, logp), shape.masked_scatter(valid, entropy))

    def _packed_hidden(self, sequences: Tensor, attention_mask: Tensor) -> Tensor:
        packed = pack(sequences, attention_mask)
        # Without a mask and with positions that start again, transformers builds a block-diagonal one for
        # every attention implementation.
        hidden = self.model.model(
            input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False
        ).last_hidden_state
        return packed.unpack(hidden)

    def _score(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        head = self.model.get_output_embeddings()
        if type(head) is nn.Linear and head.bias is None and not changes_logits(self.model):
            return linear_log_probs(hidden, head.weight, targets, temperature=temperature)
        logits = output_logits(self.model, hidden) / temperature
        return log_probs_from_logits(logits, targets), entropy_from_logits(logits)


def padded_inputs(modality: ActorModality, sequences: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    """What a backbone takes for padded rows int64 [B, S].

    Positions count valid tokens, padding has 0; models that see work them out themselves (M-RoPE).
    """
    inputs: dict[str, Any] = {"input_ids": sequences, "attention_mask": attention_mask, "use_cache": False}
    if modality is not ActorModality.VISION_LANGUAGE:
        inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return inputs


class ActorVL(ActorLanguage):
    """A vision-language model: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, PaliGemma, as transformers has them.

    Positions (M-RoPE) are worked out by the model from the grid of its images. Rows are not packed: images
    belong to rows.
    """

    modality = ActorModality.VISION_LANGUAGE


class ActorAL(ActorLanguage):
    """An audio-language model: Qwen2-Audio, as transformers has it."""

    modality = ActorModality.AUDIO_LANGUAGE
