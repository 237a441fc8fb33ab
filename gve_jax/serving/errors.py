"""Errors that are answers to a client."""

_LONGEST = 1000  # characters of a message


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
      status: of the response, 4xx or 5xx.
      message: what is wrong and what to do, for the client.
      param: the field of the request, as in OpenAI's errors.
      code: a word for programs, as in OpenAI's errors.
      retry_after: seconds after which a client may try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        message = message[:_LONGEST]  # a client may have sent a part of it
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after


def bad_request(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    return RequestError(400, message, param, code)


def overloaded(message: str) -> RequestError:
    return RequestError(429, message, code="overloaded", retry_after=1)
