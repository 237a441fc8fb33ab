"""Errors of media that cannot be read. The caller reports them or records them in a quarantine."""


class MediaError(Exception):
    """An image or a video could not be read; the message names it and the reason.

    `retry` says whether trying again may succeed. Causes in the file itself are permanent: damage,
    an unknown format, a crash of the decoder.
    """

    retry = False


class RetryableMediaError(MediaError):
    """A medium that may be readable later: it is missing or not accessible now, took too much time
    or memory, or its process was killed from outside."""

    retry = True


class LimitError(RetryableMediaError):
    """A medium that exceeds a limit; a repeated command may have a higher one."""
