"""pi0 and pi0.5 (Physical Intelligence) as a plugin of rlinf."""
