"""Episodes in TFRecord files as RLDS stores them, read without tensorflow."""
