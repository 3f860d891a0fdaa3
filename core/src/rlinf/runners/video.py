"""Before/after video: the same held-out episodes under two policies, one above the other, as a GIF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

#: Milliseconds per frame, and how many frames the last image of the longest episode stands still.
FRAME_MS, HOLD_FRAMES = 100, 12
CAPTION_HEIGHT, MARGIN = 34, 4
#: Further height of the caption where a policy says what it is doing, and characters of a line.
TEXT_HEIGHT, TEXT_LENGTH = 15, 40


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One filmed episode: `frames` uint8 [T, H, W, 3], its instruction, whether it succeeded, and what the
    policy said at each frame (empty: it says nothing)."""

    frames: np.ndarray
    instruction: str
    success: bool
    texts: Sequence[str] = ()


def write_gif(path: Path, rows: dict[str, Sequence[Clip]]) -> None:
    """Write the clips of each row (title -> clips) as a grid; a shorter episode stands still at its end.

    Raises:
        ValueError: no clip, or an image that never changes (a renderer that failed silently).
    """
    clips = [clip for row in rows.values() for clip in row]
    if not clips:
        raise ValueError(f"{path}: no episode was filmed, so there is no video to write")
    for clip in clips:
        if clip.frames.min() == clip.frames.max():
            raise ValueError(
                f"{path}: the frames of {clip.instruction!r} have one colour: the renderer failed"
            )
    length = max(len(clip.frames) for clip in clips) + HOLD_FRAMES
    images = [_grid(rows, time) for time in range(length)]
    # One palette for all frames: without it colours flicker, and the file doubles.
    palette = images[-1].quantize(colors=128, dither=Image.Dither.NONE)
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, optimize=True)


def _grid(rows: dict[str, Sequence[Clip]], time: int) -> Image.Image:
    height, width = next(iter(rows.values()))[0].frames.shape[1:3]
    caption = CAPTION_HEIGHT + TEXT_HEIGHT * any(any(clip.texts) for row in rows.values() for clip in row)
    cell_w, cell_h = width + MARGIN, height + caption
    columns = max(len(row) for row in rows.values())
    grid = Image.new("RGB", (columns * cell_w + MARGIN, len(rows) * cell_h), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(11)
    for r, (title, clips) in enumerate(rows.items()):
        for c, clip in enumerate(clips):
            x, y = MARGIN + c * cell_w, r * cell_h
            over = time >= len(clip.frames) - 1
            state, colour = ("success", "#1a7f37") if clip.success else ("failure", "#cf222e")
            draw.text((x, y + 3), clip.instruction, fill="black", font=font)
            draw.text(
                (x, y + 18),
                f"{title}: {state if over else '...'}",
                fill=colour if over else "#57606a",
                font=font,
            )
            frame = min(time, len(clip.frames) - 1)
            if clip.texts:
                draw.text((x, y + CAPTION_HEIGHT), clip.texts[frame][:TEXT_LENGTH], fill="#0550ae", font=font)
            grid.paste(Image.fromarray(clip.frames[frame]), (x, y + caption))
    return grid
