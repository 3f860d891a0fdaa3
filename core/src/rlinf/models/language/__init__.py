"""Language, vision-language and audio-language policies on transformers' models."""
