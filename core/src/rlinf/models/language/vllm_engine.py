"""vLLM as what samples answers: an engine in the rollout's process, beside the model of transformers whose
weights it is given and by which log-probabilities are computed."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from pydantic import ValidationError
from torch import Tensor

from rlinf.models.language.generation import GenerationConfig
from rlinf.models.lora import is_lora_parameter

#: Nats by which vLLM's log-probabilities of an answer may differ from transformers' on average: bfloat16 on
#: different kernels takes a few hundredths, the weights of another model take more than one as soon as they
#: have learnt something.
_TOLERANCE: Final = 0.3
#: Processes would have to be sent the weights, which are handed over in this one.
_ONE: Final = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


class VllmEngine:
    """Answers of vLLM with the weights that a model has at the time."""

    def __init__(self, model: Any, options: Mapping[str, Any]) -> None:
        """
        Args:
            model: a causal language model of transformers, adapters included, on the device of its work.
            options: keyword arguments of `vllm.LLM`, before ours.

        Raises:
            ImportError: vLLM is not installed.
            ValueError: vLLM does not know the architecture or an option, or answers unlike the model.
        """
        if importlib.util.find_spec("vllm") is None:
            raise ImportError("vllm: the package is not installed: pip install 'rlinf-core[vllm]'")
        for name in _ONE:
            if options.get(name, 1) != 1:
                raise ValueError(
                    f"vllm: {name}: expected 1, an engine in each rollout process; got {options[name]}"
                )
        # In this process, where tensors are handed over without a copy or a pickle.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        self._model = model
        self._seen: int | None = None
        with tempfile.TemporaryDirectory() as folder:
            config = type(model.config).from_dict(model.config.to_dict())
            config.architectures = [type(model).__name__]
            config.save_pretrained(folder)
            given = {
                "model": folder,
                "load_format": "dummy",
                "skip_tokenizer_init": True,
                "generation_config": "vllm",
                "dtype": str(model.dtype).removeprefix("torch."),
                "gpu_memory_utilization": 0.4,
                "disable_log_stats": True,
                **options,
            }
            try:
                self._llm = LLM(**given)
            except ValidationError as error:
                problems = "; ".join(problem["msg"] for problem in error.errors())
                raise ValueError(f"vllm: {problems}") from None
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"vllm: {error}") from error
        self._synchronize()
        sampling = self._sampling(temperature=0.0, max_tokens=1, logprobs=0)
        self._compare([1], *self._outputs([[1]], [sampling]))

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        generators: Sequence[torch.Generator] | None,
        config: GenerationConfig,
        ends: Sequence[int],
    ) -> list[list[int]]:
        """Continuations of prompts; see `generate_continuously`, whose arguments these are."""
        changed = self._synchronize()
        common = {"max_tokens": config.max_new_tokens, "ignore_eos": True, "stop_token_ids": list(ends)}
        if generators is None:
            sampling = [self._sampling(temperature=0.0, **common) for _ in prompts]
        else:
            sampling = [
                self._sampling(temperature=config.temperature, seed=_seed(generator), **common)
                for generator in generators
            ]
        if changed:
            sampling[0].logprobs = 0
        outputs = self._outputs(prompts, sampling)
        if changed:
            self._compare(prompts[0], outputs[0])
        return [list(output.token_ids) for output in outputs]

    def _synchronize(self) -> bool:
        """Give vLLM the model's weights if they changed since the last time; returns whether they did."""
        now = sum(x._version for x in (*self._model.parameters(), *self._model.buffers()))
        if now == self._seen:
            return False
        weights = merged_weights(self._model)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        # It holds keys and values of the weights before.
        self._llm.reset_prefix_cache()
        self._seen = now
        return True

    @torch.no_grad()
    def _compare(self, prompt: Sequence[int], output: Any) -> None:
        """Raises ValueError where vLLM's log-probabilities of an answer are not those of the model."""
        theirs = [row[token].logprob for row, token in zip(output.logprobs, output.token_ids, strict=True)]
        tokens = torch.tensor([[*prompt, *output.token_ids]], device=self._model.device)
        logits = self._model(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1]
        ours = logits.float().log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])[:, 0]
        difference = (ours.cpu() - torch.tensor(theirs)).abs().mean().item()
        if not difference <= _TOLERANCE:
            import vllm

            raise ValueError(
                f"vllm: with the same weights its log-probabilities differ from those of "
                f"{type(self._model).__name__} by {difference:.2f} nats on average (allowed: {_TOLERANCE}); "
                f"vLLM {vllm.__version__} does not compute this model: leave `vllm` out"
            )

    def _sampling(self, **options: Any) -> Any:
        from vllm import SamplingParams

        return SamplingParams(detokenize=False, **options)

    def _outputs(self, prompts: Sequence[Sequence[int]], sampling: Sequence[Any]) -> list[Any]:
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers = self._llm.generate(given, list(sampling), use_tqdm=False)
        return [answer.outputs[0] for answer in answers]


def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Weights of a causal language model under the names of its checkpoints, adapters (`apply_lora`) added to
    what they adapt."""
    from transformers.core_model_loading import revert_weight_conversion

    state = {}
    for name, tensor in model.state_dict().items():
        if is_lora_parameter(name):
            continue
        path, found, kind = name.partition(".base_layer.")
        if found and kind == "weight":
            layer: Any = model.get_submodule(path)
            # In float32: in bfloat16 a small difference would be lost in the sum.
            for adapter in layer.active_adapters:
                tensor = tensor.float() + layer.get_delta_weight(adapter).float()
        state[f"{path}.{kind}" if found else name] = tensor
    yield from revert_weight_conversion(model, state).items()


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
