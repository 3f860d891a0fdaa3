"""The networks of pi0 and pi0.5, in torch alone; modules are named as in openpi's checkpoints."""
