"""Layers between the host-neutral step and the trainers that run it."""
