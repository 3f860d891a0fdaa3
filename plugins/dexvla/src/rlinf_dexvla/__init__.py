"""DexVLA for rlinf: Qwen2-VL with the ScaleDP diffusion expert."""
