"""What the clients of model servers do about failed requests."""

RETRIED = (408, 409, 425, 429)  # statuses, and 5xx
FATAL = (401, 403, 404)  # no other request will succeed either


def is_retried(status: int) -> bool:
    return status in RETRIED or status >= 500


def retry_after(value: str | None) -> float:
    """Seconds of a `Retry-After`; 0 for none, or a date, which needs synchronized clocks."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        return 0.0


def excerpt(data: bytes) -> str:
    """The beginning of a body as one printable line."""
    start = " ".join(data[:300].decode(errors="replace").split())
    return "".join(c if c.isprintable() else "?" for c in start)
