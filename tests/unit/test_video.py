"""The before/after film."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from rlinf.runners.video import TEXT_HEIGHT, Clip, write_gif


def film(path: Path, *texts: list[str]) -> list[np.ndarray]:
    """The frames of a film of clips that say these."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 160, 3), dtype=np.uint8)
    clips = [Clip(frames=frames, instruction="touch it", success=True, texts=text) for text in texts]
    write_gif(path, {"policy": clips})
    with Image.open(path) as gif:
        found = []
        for number in range(getattr(gif, "n_frames", 1)):
            gif.seek(number)
            found.append(np.asarray(gif.convert("RGB")).astype(int))
    return found


def test_what_the_policy_says_stands_above_the_frame_that_it_led_to(tmp_path: Path) -> None:
    silent = film(tmp_path / "silent.gif", ["", "", ""])
    talking = film(tmp_path / "talking.gif", ["over", "down to the cube", "down to the cube"])
    assert talking[0].shape[0] == silent[0].shape[0] + TEXT_HEIGHT
    line = [frame[34 : 34 + TEXT_HEIGHT].min(axis=2) < 128 for frame in talking[:3]]
    # Dark pixels of the text: another one in the second frame, the same in the third.
    assert line[0].any() and line[1].sum() > line[0].sum() and (line[1] == line[2]).mean() > 0.99


def test_a_film_of_policies_with_and_without_texts(tmp_path: Path) -> None:
    assert len(film(tmp_path / "both.gif", [], ["over", "", "down"])) == 3
