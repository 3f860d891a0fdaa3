"""The env worker of language models: prompts go out, answers come back and are judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlinf.config import plugin_subtree
from rlinf.data.errors import DatasetError
from rlinf.data.media import MediaShape, Row, Sizes, check_media, media_of
from rlinf.data.text import read_rows
from rlinf.envs.prompts.config import PromptsConfig
from rlinf.envs.results import Observation, StepResult
from rlinf.models import get_model_config_and_processor
from rlinf.rewards import Answer, build_reward
from rlinf.rewards.base import check_scores
from rlinf.workers.answers import AnswerWorker
from rlinf.workers.base import user_errors
from rlinf.workers.env import EnvStats, Kind


class PromptWorker(AnswerWorker):
    """`reset` shows prompts, `step` takes whole answers and judges them."""

    @user_errors
    def setup(self) -> None:
        super().setup()
        options = plugin_subtree(self.config, "env")
        assert isinstance(options, PromptsConfig)
        self._options = options
        self._train_rows = read_rows(*options.sources[0])
        self._held_out_rows = read_rows(*options.sources[1])
        whole = {"model": self.config.model.model_dump(mode="json")}
        self._processor = get_model_config_and_processor(whole)[1]
        self._rewards = {reward.label: (reward.weight, build_reward(reward)) for reward in options.rewards}
        # Observations of all env processes have the same form.
        self._shape = MediaShape.of(
            [
                *self._check(options.path, self._train_rows),
                *self._check(options.eval_path, self._held_out_rows),
            ]
        )
        self._clear_stats()

    def _check(self, source: str, rows: Sequence[Row]) -> list[Sizes]:
        """Sizes of the pictures or sounds. Raises DatasetError for a prompt that the model cannot take:
        better now than hours later."""
        sizes = check_media(source, rows)
        for number, (row, own) in enumerate(zip(rows, sizes, strict=True), start=1):
            try:
                self._processor.check(str(row[self._options.prompt_key]), own)
            except ValueError as error:
                raise DatasetError(f"{source}: row {number}: {error}") from None
        return sizes

    @user_errors
    def reset(self, stage: int, iteration: int) -> Observation:
        """Draw a prompt for each group of the environments of `stage`."""
        seeds = self.episode_seeds(stage, iteration)
        rows = [self._train_rows[seed % len(self._train_rows)] for seed in seeds]
        return self._show("train", stage, rows, seeds)

    @user_errors
    def reset_held_out(self, kind: Kind, stage: int, seeds: Sequence[int], blind: bool) -> Observation:
        """Held-out prompts; `blind` hides their text."""
        obs = self._show(kind, stage, self.held_out(self._held_out_rows, seeds), seeds)
        return {**obs, "task_descriptions": [""] * len(seeds)} if blind else obs

    def _show(self, kind: Kind, stage: int, rows: list[Row], seeds: Sequence[int]) -> Observation:
        texts = [str(row[self._options.prompt_key]) for row in rows]
        obs = {"task_descriptions": texts, **media_of(rows, self._shape)}
        return self.begin(kind, stage, rows, seeds, obs)

    @user_errors
    def step(self, kind: Kind, stage: int, actions: np.ndarray) -> StepResult:
        """Judge answers: token ids float32 [n, length, 1], negative after an answer's end."""
        rows, _, _ = self._shown[kind, stage]
        answers = [self._answer(row, tokens[:, 0]) for row, tokens in zip(rows, actions, strict=True)]
        total, success = self._judge(answers)
        lengths = np.array([answer.tokens for answer in answers])
        self._frames += int(lengths.sum())
        return self.end(kind, stage, success, total, lengths, actions.shape[1])

    def _answer(self, row: Row, tokens: np.ndarray) -> Answer:
        ids = tokens[tokens >= 0].astype(np.int64).tolist()
        reference = None if self._options.reference_key is None else str(row[self._options.reference_key])
        return Answer(
            prompt=str(row[self._options.prompt_key]),
            text=self._processor.decode(ids),
            reference=reference,
            tokens=len(ids),
            truncated=ids[-1] != self._processor.tokenizer.eos_token_id,
            row=row,
        )

    def _judge(self, answers: list[Answer]) -> tuple[np.ndarray, list[bool]]:
        """Weighted sums of the rewards, float64 [n], and which answers are right; notes all of it."""
        total, success = np.zeros(len(answers)), [False] * len(answers)
        for label, (weight, reward) in self._rewards.items():
            scores = check_scores(label, reward(answers), answers)
            self._scores.setdefault(f"reward/{label}", []).extend(scores)
            total += weight * np.array(scores)
            if label == self._options.success_label:
                success = [score >= self._options.success_threshold for score in scores]
        self._scores.setdefault("truncated", []).extend(float(answer.truncated) for answer in answers)
        for answer, score in list(zip(answers, total.tolist()))[
            : self._options.examples - len(self._examples)
        ]:
            self._examples.append(f"{answer.prompt!r} -> {answer.text!r} (reward {score:.3g})")
        return total, success

    def take_stats(self) -> EnvStats:
        """Report and forget."""
        stats = EnvStats(
            frames=self._frames,
            episodes=self._episodes,
            errors={},
            scores=self._scores,
            examples=self._examples,
        )
        self._clear_stats()
        return stats

    def _clear_stats(self) -> None:
        self._frames = 0
        self._episodes = []
        self._scores: dict[str, list[float]] = {}
        self._examples: list[str] = []
