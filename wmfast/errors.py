"""The one exception that the command line shows as a single line, with exit status 2."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: a bad value, a damaged file, a full disk.

    The message is one line that names the value and what is allowed; line breaks in it are folded.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
