"""Follow a deployment to its end: the platform's status, its log stream, and, as the only judge, the bucket.

A box whose job ended before it could write into the bucket (a wrong key, a wrapper that was refused) holds still and
says so on its port: that is taken as the end, too, but never as success.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from homerun.clouds.cloud import Cloud, CloudError, Deployment
from homerun.errors import Exit, RequestError

POLL_S = 15.0
LAST_WORD_S = (
    180.0  # after the platform says it is over, how long the bucket may still change (the lease dies after 120 s)
)
PATIENCE_S = 1800.0  # of failing status calls in a row: the run does not need us

Verdict = tuple[Exit, str]


def follow(
    cloud: Cloud,
    id: str,
    judge: Callable[[], Verdict | None],
    say: Callable[[str], None],
    show: Callable[[str], None],
    poll_s: float = POLL_S,
) -> Verdict:
    """Watch until the bucket has a verdict, or the box is over without one.

    judge() reads the bucket: (code, sentence) when the run is over, else None. say() takes what happens to the box,
    show() a line of its log. Ends with the verdict; a box that is over without one is Exit.UNPROVEN.
    """
    threading.Thread(target=_stream, args=(cloud, id, say, show), daemon=True).start()
    shown = Deployment(id, "", "")
    over_since: float | None = None
    deaf_since: float | None = None
    while True:
        if verdict := judge():
            return verdict
        try:
            now = cloud.status(id)
            deaf_since = None
        except CloudError as error:
            deaf_since = deaf_since or time.monotonic()
            if time.monotonic() - deaf_since > PATIENCE_S:
                raise
            say(f"{error.what} (trying again; the run does not need this)")
        else:
            for text in changes(shown, now):
                say(text)
            shown = now
            if code := held(now.url):
                return code, f"the box holds still: its job ended with {int(code)}; its log says why"
            over_since = (over_since or time.monotonic()) if now.over else None
        if over_since is not None and time.monotonic() - over_since > LAST_WORD_S:
            return Exit.UNPROVEN, f"the box is {shown.status}, and the bucket has no _SUCCESS of this run"
        time.sleep(poll_s)


def held(url: str | None) -> Exit | None:
    """What the job ended with if that was no success, by the box's own word; None while it works or does not answer."""
    try:
        answer = httpx.get(f"{url}/healthz", timeout=5.0).json() if url else {}
        return Exit(answer["code"]) if answer.get("status") == "held" and answer["code"] else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, AttributeError, TypeError):
        return None


def changes(before: Deployment, now: Deployment) -> list[str]:
    """What to tell about a deployment that was `before` and is `now`."""
    told = []
    if now.status != before.status:
        left = f", {now.minutes_left} minutes left" if now.minutes_left is not None else ""
        told.append(f"{now.status}{left}")
    if now.url and now.url != before.url:
        told.append(f"answers on {now.url}")
    known = set(before.notes)
    return told + [note for note in now.notes if note not in known]


def _stream(cloud: Cloud, id: str, say: Callable[[str], Any], show: Callable[[str], Any]) -> None:
    try:
        for line in cloud.logs(id):
            show(line)
    except RequestError as error:  # this cloud has none
        say(str(error))
    except CloudError as error:
        say(f"no more log lines: {error}")
