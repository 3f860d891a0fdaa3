"""Policies with one defect each, offered by a plugin like any other."""
