"""The networks of pi0 and pi0.5, in torch alone; the names of their modules are those of openpi's checkpoints."""
