"""The one exception for mistakes that a user can make and mend."""


class SparsePOError(ValueError):
    """Bad input: one line that names the key, or the file and row, and what is allowed.

    The command line prints the message alone and exits with code 2; a traceback would hide it.
    """
