"""What a medium that cannot be read raises; the caller decides: an error, or the quarantine."""


class MediaError(Exception):
    """An image or a video could not be read; the message names it and the reason.

    `retry` says whether trying again may succeed. What the file itself says is permanent: damage,
    an unknown format, a crash of the decoder.
    """

    retry = False


class RetryableMediaError(MediaError):
    """A medium that may be readable the next time: it is missing or not accessible now, took too
    long or too much memory, or its process was killed from outside."""

    retry = True


class LimitError(RetryableMediaError):
    """A medium above one of the limits, which a repeated command may raise."""
