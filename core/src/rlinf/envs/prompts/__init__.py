"""Prompts as an environment: an episode is one answer, a step is one token, rewards judge the text.

The simulators' interface (`gymnasium.Env`) has no place here: `rlinf.workers.prompts` plays these episodes.
"""
