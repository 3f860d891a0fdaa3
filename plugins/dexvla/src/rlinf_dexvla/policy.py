"""The policy: reason in text, condition the action expert on it, denoise an action chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from rlinf.data.augment import augment
from rlinf.models.embodiment.base_policy import BasePolicy, check_mode
from rlinf.models.embodiment.modules.value_head import ValueHead
from rlinf.models.embodiment.sampling import (
    categorical_per_sample,
    filter_logits,
    generators_of,
    randn_per_sample,
)
from rlinf.models.logprobs import entropy_from_logits
from torch import Tensor, nn

from rlinf_dexvla.chain import Chain
from rlinf_dexvla.config import DexvlaConfig
from rlinf_dexvla.ddim import Schedule
from rlinf_dexvla.fusion import ActionProjector, FiLM, masked_mean
from rlinf_dexvla.normalizer import Normalizer
from rlinf_dexvla.prompt import IGNORED, ImageGeometry, PromptBuilder
from rlinf_dexvla.scaledp import SIZES, ScaleDP
from rlinf_dexvla.tokenizers import Tokenizer
from rlinf_dexvla.vlm import (
    PIXEL_STATS,
    Generated,
    Vision,
    build_vlm,
    encode,
    generate,
    language_loss,
)

#: With the original's figures: crops of 95 % of each side.
_augment: Final = partial(
    augment, crop_area=0.95**2, degrees=5.0, brightness=0.3, contrast=0.4, saturation=0.5
)


@dataclass(frozen=True)
class Answered:
    """What the language model made of observations: its answers and the pooled hidden states.

    pooled [B, 2, H]: means over prompt and answer. answers int64 [B, N], None without a language model.
    """

    pooled: Tensor
    answers: Tensor | None


@dataclass(frozen=True)
class Thought:
    """Pooled hidden states [B, 2, H] as training has them; where the text is trained, the log-probability of
    a whole answer and the entropy of its tokens' distributions, float32 [B]."""

    pooled: Tensor
    logprob: Tensor | None
    entropy: Tensor | None


class DexvlaPolicy(BasePolicy):
    """DexVLA (Wen et al. 2025, arXiv:2502.05855). See docs/dexvla.md.

    Args:
        config: the plugin's subtree. vlm_config: of transformers; None without a language model (then
            `cond_dim` says how wide its hidden states would be).
        action_dim, num_action_chunks, add_value_head: as in the block `model`.
    """

    def __init__(
        self,
        config: DexvlaConfig,
        *,
        vlm_config: Any,
        tokenizer: Tokenizer,
        normalizer: Normalizer,
        action_dim: int,
        num_action_chunks: int,
        add_value_head: bool,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_action_chunks, self.action_dim = num_action_chunks, action_dim
        width = vlm_config.get_text_config().hidden_size
        self.hidden_size = width
        self.vlm: Any = build_vlm(vlm_config) if config.use_vlm else None
        if config.use_vlm:
            self.input_action_proj = ActionProjector(width)
            self.reasoning_action_proj = ActionProjector(width)
            self.reasoning_film = FiLM(width)
        head = config.policy_head
        depth, head_width, num_heads = (
            SIZES[config.policy_head_size] if head is None else (head.depth, head.width, head.num_heads)
        )
        self.policy_head = ScaleDP(
            cond_dim=width,
            state_dim=config.state_dim,
            action_dim=action_dim,
            horizon=config.prediction_horizon or num_action_chunks,
            depth=depth,
            width=head_width,
            num_heads=num_heads,
            mlp_ratio=4.0 if head is None else head.mlp_ratio,
            bf16_frequencies=config.timestep_frequencies == "bfloat16",
        )
        self.value_head = ValueHead(width + config.state_dim, config.value_hidden) if add_value_head else None
        self.normalizer = normalizer
        self.chain = Chain(
            schedule=Schedule(
                num_train_timesteps=config.num_train_timesteps,
                num_inference_timesteps=config.num_inference_timesteps,
            ),
            trained=config.finetuned_steps,
            eta=config.rl.eta,
            min_std=config.rl.min_std,
        )
        vision = vlm_config.vision_config
        self.images = ImageGeometry(
            config.cameras,
            patch=vision.patch_size,
            merge=vision.spatial_merge_size,
            temporal=vision.temporal_patch_size,
        )
        self.pixel_stats = PIXEL_STATS[vlm_config.model_type]
        self.prompt = PromptBuilder(
            tokenizer,
            self.images.tokens,
            system_prompt=config.system_prompt,
            use_reasoning=config.use_reasoning,
            max_prompt_tokens=config.max_prompt_tokens,
        )
        self._freeze()

    def _freeze(self) -> None:
        if self.vlm is None:
            return
        if self.config.freeze_vision_tower:
            self.vlm.model.visual.requires_grad_(False)
        if self.config.freeze_backbone:
            self.vlm.model.language_model.requires_grad_(False)
            self.vlm.lm_head.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.policy_head.pos_embed.device

    @property
    def vlm_trains(self) -> bool:
        """Whether any weight of the language model is trained; if not, RL keeps its hidden states."""
        return self.vlm is not None and any(p.requires_grad for p in self.vlm.parameters())

    # -- inputs ------------------------------------------------------------------------------------------

    def inputs(self, env_obs: dict[str, Any], *, augmented: bool = False) -> dict[str, Tensor]:
        """The observation, batch first: normalised `states`; `prompts` int64 [B, L]; `image_N` uint8."""
        states = torch.as_tensor(env_obs["states"]).to(self.device)
        if states.dim() != 2 or states.shape[-1] != self.config.state_dim:
            raise ValueError(
                f"states: expected [B, {self.config.state_dim}] (the model's state_dim), "
                f"got {tuple(states.shape)}"
            )
        found = {"states": self.normalizer.states(states)}
        if self.vlm is not None:
            found["prompts"] = self.prompt.prompts(env_obs["task_descriptions"]).to(self.device)
            images = self.images.resize(env_obs, self.device)
            if augmented:
                images = _augment(images)
            found |= {f"image_{i}": image for i, image in enumerate(images)}
        return found

    def _vision(self, inputs: dict[str, Tensor]) -> Vision:
        images = [inputs[f"image_{i}"] for i in range(len(self.images.keys))]
        patches = self.images.patches(images, *self.pixel_stats)
        return Vision(patches, self.images.grid(len(images[0]), patches.device))

    # -- language model ----------------------------------------------------------------------------------

    def _hidden(self, inputs: dict[str, Tensor], answers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states [B, L + N, H] of prompt and answer, and the masks of the two [B, L + N]."""
        ids = torch.cat([inputs["prompts"], answers], dim=1)
        mask = ids != self.prompt.pad_id
        is_answer = torch.arange(ids.shape[1], device=ids.device) >= inputs["prompts"].shape[1]
        return encode(self.vlm, ids, mask, self._vision(inputs)), mask & ~is_answer, mask & is_answer

    def _pool(self, hidden: Tensor, is_prompt: Tensor, is_answer: Tensor) -> Tensor:
        """[B, 2, H]: means over prompt and answer; without FiLM twice the mean over both."""
        if not self.config.using_film:
            is_prompt = is_answer = is_prompt | is_answer
        return torch.stack([masked_mean(hidden, is_prompt), masked_mean(hidden, is_answer)], dim=1)

    def condition(self, pooled: Tensor) -> Tensor:
        """The expert's condition [B, H] of pooled hidden states [B, 2, H]; zeros without a language model."""
        prompt, answer = pooled.to(self.policy_head.dtype).unbind(dim=1)
        if self.vlm is None:
            return prompt
        projected = self.input_action_proj(prompt)
        if self.config.using_film:
            projected = self.reasoning_film(projected, self.reasoning_action_proj(answer))
        return projected + prompt

    def answer(
        self,
        inputs: dict[str, Tensor],
        generators: Sequence[torch.Generator] | None = None,
        *,
        sample: bool = False,
    ) -> Answered:
        """Reason about the observations: greedily, or by draws of the generators."""
        batch = len(inputs["states"])
        if self.vlm is None:
            return Answered(torch.zeros(batch, 2, self.hidden_size, device=self.device), None)
        if not self.config.use_reasoning:  # the answer is empty: nothing to generate
            answers = self.prompt.answers([""] * batch).to(self.device)
            return Answered(self._pool(*self._hidden(inputs, answers)), answers)
        generated = self._generate(inputs, generators, sample)
        is_answer = generated.answers != self.prompt.pad_id
        if not self.config.last_token_hidden:
            is_answer = is_answer & ~_last(is_answer)
        is_prompt = inputs["prompts"] != self.prompt.pad_id
        hidden = torch.cat([generated.prompt, generated.answer], dim=1)
        masks = (
            torch.cat([is_prompt, torch.zeros_like(is_answer)], dim=1),
            torch.cat([torch.zeros_like(is_prompt), is_answer], dim=1),
        )
        return Answered(self._pool(hidden, *masks), generated.answers)

    def _generate(
        self, inputs: dict[str, Tensor], generators: Sequence[torch.Generator] | None, sample: bool
    ) -> Generated:
        def choose(logits: Tensor) -> Tensor:
            if sample:
                return categorical_per_sample(self._token_logprobs(logits), generators)
            return self.prompt.bar(logits).argmax(dim=-1)

        return generate(
            self.vlm,
            inputs["prompts"],
            inputs["prompts"] != self.prompt.pad_id,
            self._vision(inputs),
            max_tokens=self.config.max_reasoning_tokens,
            end_id=self.prompt.end_id,
            pad_id=self.prompt.pad_id,
            choose=choose,
        )

    def _token_logprobs(self, logits: Tensor) -> Tensor:
        """Log-probabilities [..., V] from which the answer's tokens are drawn."""
        rl = self.config.rl
        return filter_logits(self.prompt.bar(logits), temperature=rl.temperature, top_k=rl.top_k)

    # -- acting ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict_action_batch(
        self,
        env_obs: dict[str, Any],
        mode: str = "train",
        compute_values: bool = True,
        *,
        generators: Sequence[torch.Generator] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """See `BasePolicy`. Mode "eval" denoises without noise from a start that the observation
        determines. The result also has `texts` list[str], the reasoning."""
        check_mode(mode)
        inputs = self.inputs(env_obs)
        sample = mode == "train" and self.config.rl.train_reasoning
        answered = self.answer(inputs, generators, sample=sample)
        recorded = self._record(inputs, answered)
        # From here on what training runs, in the same shapes: under bfloat16 only that is exact.
        thought = self._thought(recorded)
        cond = self.condition(thought.pooled)
        if mode == "train":
            chain = self.chain.sample(self.policy_head, cond, inputs["states"], generators)
        else:
            shape = (len(cond), self.policy_head.pos_embed.shape[1], self.action_dim)
            seen = [value for name, value in inputs.items() if name != "prompts"]
            noise = randn_per_sample(shape, generators_of(*seen), self.device)
            chain = self.chain.deterministic(self.policy_head, cond, inputs["states"], noise)
            chain = chain[-self.chain.trained - 1 :]
        recorded["chain"] = chain.transpose(0, 1).contiguous()
        out = self._evaluate(recorded, thought, cond)
        recorded["transition_logprobs"] = out["transition_logprobs"]
        result: dict[str, Any] = {"prev_logprobs": out["logprobs"], "forward_inputs": recorded}
        if compute_values and self.value_head is not None:
            result["prev_values"] = out["values"]
        if answered.answers is not None:
            result["texts"] = self.prompt.texts(answered.answers)
        return self._robot_actions(chain[-1][:, : self.num_action_chunks], env_obs), result

    def _robot_actions(self, actions: Tensor, env_obs: dict[str, Any]) -> Tensor:
        """Actions of the model in the robot's units; differences are added up from the measured state."""
        actions = self.normalizer.robot_actions(actions)
        if self.config.delta_control:
            start = torch.as_tensor(env_obs["states"]).to(self.device).float()[:, None, : self.action_dim]
            actions = start + actions.cumsum(dim=1)
        return actions

    def _record(self, inputs: dict[str, Tensor], answered: Answered) -> dict[str, Tensor]:
        """What training needs: the pooled hidden states, or all they come from if that model trains."""
        if not self.vlm_trains:
            return {"states": inputs["states"], "pooled": answered.pooled.float()}
        assert answered.answers is not None
        prompts, pad = inputs["prompts"], self.prompt.pad_id
        room = self.config.max_prompt_tokens - prompts.shape[1]
        answer_room = self.config.max_reasoning_tokens - answered.answers.shape[1]
        return {
            **inputs,
            "prompts": nn.functional.pad(prompts, (room, 0), value=pad),
            "answers": nn.functional.pad(answered.answers, (0, answer_room), value=pad),
        }

    # -- training ----------------------------------------------------------------------------------------

    def default_forward(self, forward_inputs: dict[str, Tensor], **kwargs: Any) -> dict[str, Any]:
        """See `BasePolicy`. The transitions are the trained denoising steps and, with `rl.train_reasoning`,
        the text: its log-probability is spread evenly over the chunk's entries."""
        thought = self._thought(forward_inputs)
        return self._evaluate(forward_inputs, thought, self.condition(thought.pooled))

    def _thought(self, recorded: dict[str, Tensor]) -> Thought:
        """The recorded hidden states, or those of a forward over prompt and recorded answer."""
        if "pooled" in recorded:
            return Thought(recorded["pooled"], None, None)
        inputs, answers = _trimmed(recorded, self.prompt.pad_id)
        hidden, is_prompt, is_answer = self._hidden(inputs, answers)
        pooled = self._pool(hidden, is_prompt, is_answer)
        if not self.config.rl.train_reasoning:
            return Thought(pooled, None, None)
        logp = self._token_logprobs(self.vlm.lm_head(hidden[:, inputs["prompts"].shape[1] - 1 : -1]))
        counted = answers != self.prompt.pad_id
        chosen = logp.gather(-1, answers.unsqueeze(-1)).squeeze(-1)
        return Thought(
            pooled,
            torch.where(counted, chosen, 0).sum(dim=1),
            torch.where(counted, entropy_from_logits(logp), 0).sum(dim=1),
        )

    def _evaluate(self, recorded: dict[str, Tensor], thought: Thought, cond: Tensor) -> dict[str, Any]:
        """Densities and values of what was recorded."""
        logprobs = self.chain.step_logprobs(self.policy_head, recorded["chain"], cond, recorded["states"])
        logprobs = logprobs[:, :, : self.num_action_chunks]
        entropy = self.chain.step_entropy(cond.device).sum().expand_as(logprobs[:, 0])
        discounts, clips = self.chain.discounts(self.config.rl), self.chain.clips(self.config.rl)
        if thought.logprob is not None and thought.entropy is not None:
            size = logprobs[0, 0].numel()
            text = (thought.logprob / size)[:, None, None, None].expand_as(logprobs[:, :1])
            logprobs = torch.cat([logprobs, text], dim=1)
            entropy = entropy + (thought.entropy / size)[:, None, None]
            discounts, clips = (*discounts, 1.0), (*clips, 1.0)
        out: dict[str, Any] = {
            "transition_logprobs": logprobs,
            "transition_discounts": discounts,
            "transition_clips": clips,
            "logprobs": logprobs.sum(dim=1),
            "entropy": entropy,
        }
        if self.value_head is not None:
            # Detached: the critic's errors must not move what the actor acts on.
            features = torch.cat([cond.detach().float(), recorded["states"].float()], dim=-1)
            out["values"] = self.value_head(features)
        return out

    def sft_forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Denoising loss of `actions`, plus the language loss of `reasonings` (list[str], "" where absent).

        Both are means over counted steps (`action_is_pad` False): a sample's tokens weigh as its steps do.
        Metrics, where the language model trains: `action_loss`, `llm_loss`.
        """
        counted = ~torch.as_tensor(batch["action_is_pad"]).to(self.device).bool()
        actions = torch.as_tensor(batch["actions"]).to(self.device)
        horizon = self.policy_head.pos_embed.shape[1]
        if actions.shape[1:] != (horizon, self.action_dim):
            raise ValueError(
                f"actions: expected [B, {horizon}, {self.action_dim}] (prediction_horizon, action_dim), "
                f"got {tuple(actions.shape)}"
            )
        # The other steps attend to the padded ones, which tell the robot to go to 0, as in the original.
        actions = self.normalizer.actions(actions * counted.unsqueeze(-1))
        inputs = self.inputs(batch, augmented=self.config.augment and self.training)
        pooled, llm_loss = self._demonstrated(inputs, batch.get("reasonings"), counted)
        noise = torch.randn_like(actions)
        times = torch.randint(0, self.config.num_train_timesteps, (len(actions),), device=self.device)
        noisy = self.chain.schedule.add_noise(actions, noise, times)
        predicted = self.policy_head(noisy, times, self.condition(pooled), inputs["states"])
        loss = action_loss(predicted, noise, counted, padded_in_mean=self.config.padded_in_mean)
        if llm_loss is None:
            return {"loss": loss}
        return {
            "loss": loss + self.config.llm_loss_weight * llm_loss,
            "action_loss": loss.detach(),
            "llm_loss": llm_loss.detach(),
        }

    def _demonstrated(
        self, inputs: dict[str, Tensor], reasonings: Sequence[str] | None, counted: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Pooled hidden states of the demonstrated answers; a language loss if the language model trains."""
        if self.vlm is None:
            return torch.zeros(len(counted), 2, self.hidden_size, device=self.device), None
        answers = self.prompt.answers(reasonings or [""] * len(counted)).to(self.device)
        hidden, is_prompt, is_answer = self._hidden(inputs, answers)
        pooled = self._pool(hidden, is_prompt, is_answer)
        if not self.vlm_trains:
            return pooled, None
        ids = torch.cat([inputs["prompts"], answers], dim=1)
        weights = counted.sum(dim=1) / is_answer.sum(dim=1)
        labels = ids.masked_fill(~is_answer, IGNORED)
        return pooled, language_loss(self.vlm, hidden, labels, weights[:, None].expand(ids.shape))


def action_loss(predicted: Tensor, noise: Tensor, counted: Tensor, *, padded_in_mean: bool) -> Tensor:
    """Mean squared error of the noise [B, T, A] over the counted steps (bool [B, T]); 0 without any.

    padded_in_mean: divide by all entries instead, as the original does.
    """
    error = (predicted - noise).square() * counted.unsqueeze(-1)
    count = counted.numel() if padded_in_mean else int(counted.sum())
    return error.sum() / max(count * noise.shape[-1], 1)


def _last(mask: Tensor) -> Tensor:
    """True at the last True of each row [B, N]."""
    return mask & (mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True))


def _trimmed(recorded: dict[str, Tensor], pad_id: int) -> tuple[dict[str, Tensor], Tensor]:
    """Recorded prompts and answers without the columns that are padding in every row."""
    prompts, answers = recorded["prompts"], recorded["answers"]
    start = int((prompts != pad_id).any(dim=0).int().argmax())
    length = int((answers != pad_id).any(dim=0).sum())
    return {**recorded, "prompts": prompts[:, start:]}, answers[:, :length]
