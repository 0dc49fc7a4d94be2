"""Completions of prompts: prompts, sampling, rewards, and pairs of the best and the worst."""
