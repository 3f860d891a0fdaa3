"""Models that score answers: scalar heads on a language model's hidden states, and judges that write."""
