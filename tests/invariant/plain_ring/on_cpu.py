"""Attention that is called flash_attention_2 and is plain PyTorch needs no GPU."""

from sparsepo_plugin.hosts.openrlhf import flags

flags._has_cuda = lambda: True
