"""What a medium that cannot be read raises; the caller decides: an error, or the quarantine."""


class MediaError(Exception):
    """An image or a video could not be read; the message names it and the reason."""
