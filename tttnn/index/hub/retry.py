"""Steps of work with a Hub, taken again where it fails for a while."""

import logging
import time
from collections.abc import Callable
from email.utils import mktime_tz, parsedate_tz
from json import JSONDecodeError
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import parse_ratelimit_headers

from tttnn.errors import HubError


logger = logging.getLogger(__name__)

Result = TypeVar("Result")

WAITS = (1, 2, 4, 8, 8)  # seconds, before one more try each
MAX_WAIT = 300  # the window of the Hub's own limits of rates
TRANSIENT = (408, 429, 500, 502, 503, 504)
# A RuntimeError comes from huggingface_hub where a store refuses an upload, whose address may have expired (the next
# try gets a new one), and from httpx2 where another thread has closed the shared client. No JSON is a proxy's page.
FAILURES = (httpx2.TransportError, HfHubHTTPError, LocalEntryNotFoundError, RuntimeError, JSONDecodeError)


def persist(step: Callable[[], Result], problem: str, advice: str) -> Result:
    """
    Take a step, and again a few times where a Hub does not answer or says that it cannot serve now.

    Of its requests huggingface_hub itself repeats only some: not those that make a repo, a branch or a commit, nor
    those for a file at a store that answers 5xx.

    Args:
        step (`Callable`):
            May be taken again, whatever of it was done.
        problem (`str`):
            What to say where it fails to the last.
        advice (`str`):
            What to do then.

    Returns:
        `Any`: what the step gives.

    Raises:
        `ConnectionError`: If it fails to the last.
        `HfHubHTTPError`: If the Hub refuses: an unknown repo, or a token without access.
    """
    waits = iter(WAITS)
    while True:
        try:
            return step()
        except FAILURES as error:
            # where huggingface_hub looks into its cache instead, and in vain, the answer of the Hub lies behind
            cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
            if isinstance(cause, HfHubHTTPError) and cause.response.status_code not in TRANSIENT:
                raise cause from cause.__cause__
            if not isinstance(cause, FAILURES):  # the Hub was not to be asked
                raise
            told = " ".join(f"{error} {error.__cause__ or ''}".split())  # in one line
            if (wait := next(waits, None)) is None:
                raise HubError(f"{problem} ({told}). {advice}") from error
            seconds = max(wait, min(_seconds_asked_for(cause), MAX_WAIT))
            logger.warning("%s (%s). The next try is in %d seconds.", problem, told, seconds)
            time.sleep(seconds)


def _seconds_asked_for(error: BaseException) -> float:
    if not isinstance(error, HfHubHTTPError):
        return 0
    headers = error.response.headers
    limit, asked = parse_ratelimit_headers(headers), headers.get("Retry-After", "").strip()
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    if asked.isdecimal():
        return float(asked)
    date = parsedate_tz(asked)
    return 0 if date is None else mktime_tz(date) - time.time()
