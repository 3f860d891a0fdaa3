"""Names that published guides use."""
