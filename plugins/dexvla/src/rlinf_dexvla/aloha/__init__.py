"""gym-aloha, a bimanual robot in MuJoCo, as an environment of rlinf."""
