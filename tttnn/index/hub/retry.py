"""One retry for what huggingface_hub does not repeat itself."""

import logging
import re
import time
from collections.abc import Callable
from email.utils import mktime_tz, parsedate_tz
from json import JSONDecodeError
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from tttnn.errors import HubError


logger = logging.getLogger(__name__)

Result = TypeVar("Result")

WAITS = (1, 2, 4, 8, 8)  # seconds before each further try
MAX_WAIT = 300  # the window of the Hub's own rate limits
TRANSIENT = (408, 429, 500, 502, 503, 504)
# huggingface_hub raises a RuntimeError if a store refuses an upload: its address may have expired, and the next try
# gets a new one. httpx2 raises one if another thread has closed the shared client. A proxy's page is not JSON.
FAILURES = (httpx2.TransportError, HfHubHTTPError, LocalEntryNotFoundError, RuntimeError, JSONDecodeError)


def persist(step: Callable[[], Result], problem: str, advice: str, partly_repeated: bool = False) -> Result:
    """Take a step up to six times; `partly_repeated` if huggingface_hub repeats some of its requests by itself."""
    waits = iter(WAITS)
    while True:
        try:
            return step()
        except OfflineModeIsEnabled as error:
            raise HubError(f"{problem}: `HF_HUB_OFFLINE` is set, so the Hub was not asked. Unset it.") from error
        except FAILURES as error:
            # if the Hub fails, huggingface_hub looks into its cache; if that is in vain, the Hub's answer is the cause
            failure = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
            if isinstance(failure, HfHubHTTPError) and failure.response.status_code not in TRANSIENT:
                raise failure from failure.__cause__
            if not isinstance(failure, FAILURES):  # the Hub was not asked
                raise
            upload_failure = failure.__cause__ if isinstance(failure, RuntimeError) else None
            reason = " ".join(f"{failure} {upload_failure or ''}".split())  # in one line
            wait = next(waits, None)
            if wait is None or partly_repeated and _was_repeated(upload_failure or failure):
                raise HubError(f"{problem} ({reason}). {advice}") from error
            seconds = max(wait, min(_seconds_asked_for(failure), MAX_WAIT))
            logger.warning("%s (%s). The next try is in %d seconds.", problem, reason, seconds)
            time.sleep(seconds)


def _was_repeated(failure: BaseException) -> bool:
    """Whether huggingface_hub 2.4 has sent a failed request six times itself; `test_push.py` counts them."""
    if not isinstance(failure, httpx2.TransportError | HfHubHTTPError):
        return False
    status = failure.response.status_code if isinstance(failure, HfHubHTTPError) else None
    # huggingface_hub sets the error's own `request`, and httpx2 resets it
    request = failure.response.request if isinstance(failure, HfHubHTTPError) else failure.request
    method, path = request.method, request.url.path
    if method == "PUT" or re.search(r"^/api/\w+/[^/]+/[^/]+/(tree|preupload)/|\.git/info/lfs/", path):
        return status is None or status in TRANSIENT
    if path.startswith("/api/"):
        return False
    if status is not None:  # of a file, like all below
        return method == "HEAD" or status in (408, 429)
    if isinstance(failure, httpx2.RemoteProtocolError):
        return method == "GET"
    return isinstance(failure, httpx2.ConnectError | httpx2.TimeoutException)


def _seconds_asked_for(failure: BaseException) -> float:
    if not isinstance(failure, HfHubHTTPError):
        return 0
    headers = failure.response.headers
    limit, retry_after = parse_ratelimit_headers(headers), headers.get("Retry-After", "").strip()
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    if retry_after.isdecimal():
        return float(retry_after)
    date = parsedate_tz(retry_after)
    return 0 if date is None else mktime_tz(date) - time.time()
