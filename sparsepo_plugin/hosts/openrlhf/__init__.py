"""OpenRLHF, as a patched copy of the pinned release."""
