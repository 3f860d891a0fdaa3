"""Episodes in HDF5, in the layout of ALOHA, ACT and DexVLA: one file per episode.

    /action                      float [T, A]
    /language_raw                text, [1] or a scalar
    /substep_reasonings          text [T], or /reasoning [1] for the whole episode; may be absent
    /observations/qpos, qvel     float [T, D]
    /observations/images/<cam>   uint8 [T, H, W, 3]; with the attribute `compress` JPEG or PNG bytes, [T, N]
                                 padded with zeros, or of variable length

Attributes of the file: `sim` (actions of a real robot lag one step, see `reader`), `compress`, `fps` (50).
Feature names are the paths without the first slash.
"""
