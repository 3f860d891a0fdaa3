"""Write the problems of digits_grpo or dtmf_grpo as files, as a run on pictures or sounds of your own has
them.

    python examples/prompts/write.py digits|dtmf FOLDER [ROWS]

FOLDER gets train.jsonl, held_out.jsonl and demonstrations.jsonl, whose rows name PNG files in FOLDER/images
or WAV files in FOLDER/audios, relative to the JSONL file; at most ROWS rows each. Always the same. See
docs/language.md.
"""

from __future__ import annotations

import argparse
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rlinf.envs.prompts import digits, dtmf


def save_image(file: Path, pixels: np.ndarray) -> None:
    """pixels: uint8 [H, W, 3]."""
    Image.fromarray(pixels).save(file)


def save_sound(file: Path, samples: np.ndarray) -> None:
    """samples: float32 [N] in -1 to 1, at 16 kHz."""
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes((32767 * samples).astype("<i2").tobytes())


#: Of each kind: its problems, the column of their media, the files' ending, and what writes one.
KINDS: dict[str, tuple[Any, str, str, Any]] = {
    "digits": (digits, "image", "png", save_image),
    "dtmf": (dtmf, "audio", "wav", save_sound),
}


def write(kind: str, folder: Path, rows: int | None) -> None:
    """The three files and their pictures or sounds."""
    problems, column, ending, save = KINDS[kind]
    media = folder / f"{column}s"
    media.mkdir(parents=True, exist_ok=True)
    for split in ("train", "held_out", "demonstrations"):
        lines = []
        for number, row in enumerate(getattr(problems, split)()[:rows]):
            file = media / f"{split}_{number:04d}.{ending}"
            save(file, row[column])
            lines.append(json.dumps({**row, column: str(file.relative_to(folder))}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("rows", type=int, nargs="?")
    given = parser.parse_args()
    write(given.kind, given.folder, given.rows)
