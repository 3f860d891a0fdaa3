"""tiny_vla: a vision-language-action transformer small enough for two CPU cores."""
