"""The one exception whose message is meant for the person at the terminal."""


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where and what to do, in one line.

    The command line prints the message alone and exits with code 2.
    """
