"""io.net CaaS: prepaid boxes with one container and one HTTP port, no volumes and no shell.

The facts that shape this file: unknown keys are a 422; there are no idempotency keys, so a deploy whose answer is lost
is looked up by name and never sent again; a deployment may be a 404 right after it was made; log streams break off
without an `event: complete` and replay when opened again; time is not refunded. Where documents disagree (list
envelopes, page numbers, status spelling) any answer is taken.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from homerun.clouds.api import Api, ApiError
from homerun.clouds.cloud import CloudError, Deployment, Offer, Quote, UnknownOutcome
from homerun.clouds.order import Order

URL = "https://api.io.solutions/enterprise/v1/io-cloud/caas"
PAGE = 100
LOOKUPS, LOOKUP_S = 6, 5.0  # how often a deploy whose answer was lost is looked for, and how long apart
STREAM_FAILURES = 3  # in a row, each without a new line
STREAM_RETRY_S = 2.0
SILENCE_S = 30.0  # a stream that was open for longer was silent, not broken
HINTS = {
    401: "Check IOCLOUD_API_KEY: it must be of project io-cloud (https://ai.io.net/ai/api-keys) and not expired",
    403: "Give the key of IOCLOUD_API_KEY the io-cloud scope",
    404: "`homerun deployments` lists what there is",
    422: "Correct that field in the deployment file; docs/caas.md has the schema",
    429: "300 requests a minute are allowed; wait one",
}


class CaaS:
    """A client for the enterprise API. key: IOCLOUD_API_KEY."""

    name, prepaid = "caas", True

    def __init__(self, key: str, url: str | None = None):
        self._api = Api("CaaS", url or os.environ.get("CAAS_API_URL", URL), {"x-api-key": key}, HINTS)

    def check_key(self) -> None:
        self._api.get("/deployments", page=1, page_size=1)

    def offers(self, gpu: str, gpus: int) -> list[Offer]:
        answer = _data(self._api.get("/hardware"))
        rows = answer if isinstance(answer, list) else answer.get("hardware", [])
        named = [row for row in rows if gpu.lower() in _label(row).lower()]
        found = [offer for row in named if (offer := _offer(row, gpus)) and offer.available != 0]
        return [self._locate(offer) for offer in sorted(found, key=lambda offer: offer.usd_per_hour or float("inf"))]

    def quote(self, offer: Offer, hours: int) -> Quote:
        answer = self._api.get(
            "/price",
            location_ids=json.dumps([_number(offer.location)]),
            hardware_id=offer.hardware,
            duration_hours=hours,
            gpus_per_container=offer.gpus,
            replica_count=1,
        )
        try:
            return Quote(float(_data(answer)["total_cost_usdc"]), hours)
        except (KeyError, TypeError, ValueError):
            raise CloudError(
                "CaaS: /price names no total_cost_usdc", "Nothing was sent; look at its price page"
            ) from None

    def _locate(self, offer: Offer) -> Offer:
        """The offer with a location's number, which prices and deployments ask for, where /hardware gave its name."""
        if offer.location and offer.location.isdigit():
            return offer
        try:
            rows = _data(self._api.get("/available-replicas", hardware_id=offer.hardware, hardware_qty=offer.gpus))
        except ApiError:  # documented, but called deprecated by the vendor's SDK
            return offer
        free = [row for row in rows if row.get("available_replicas", 0) > 0]
        here = [row for row in free if offer.location in (None, row.get("iso2"), row.get("name"))]
        return replace(offer, location=str(here[0]["id"]), available=here[0]["available_replicas"]) if here else offer

    def find(self, name: str) -> list[Deployment]:
        return [each for each in self.deployments() if each.name == name and not each.over]

    def deploy(self, order: Order, offer: Offer) -> str:
        try:
            answer = self._api.send("POST", "/deploy", order.body())
        except UnknownOutcome as error:
            for _ in range(LOOKUPS):
                time.sleep(LOOKUP_S)
                if found := self.find(order.name):
                    return found[0].id
            raise UnknownOutcome(
                f"{error.what}, and no deployment {order.name} shows up",
                "Look at `homerun deployments` in some minutes before you deploy again: it may have been paid for",
            ) from None
        if not isinstance(answer, dict) or not answer.get("deployment_id"):
            raise UnknownOutcome("CaaS: /deploy named no deployment_id", "Look at `homerun deployments`")
        return str(answer["deployment_id"])

    def deployments(self) -> list[Deployment]:
        rows: list[dict[str, Any]] = []
        for page in range(1, 100):
            batch = _data(self._api.get("/deployments", page=page, page_size=PAGE)).get("deployments", [])
            rows += batch
            if len(batch) < PAGE:
                break
        return [_deployment(row) for row in rows]

    def status(self, id: str) -> Deployment:
        try:
            details = _data(self._api.get(f"/deployment/{id}"))
        except ApiError as error:
            if error.status != 404:
                raise
            listed = [each for each in self.deployments() if each.id == id]
            return listed[0] if listed else Deployment(id, "", "deployment requested")
        return _deployment(details, self._containers(id))

    def _containers(self, id: str) -> list[dict[str, Any]]:
        try:
            return _data(self._api.get(f"/deployment/{id}/containers", page=1, page_size=PAGE)).get("workers", [])
        except ApiError as error:
            if error.status != 404:
                raise
            return []

    def logs(self, id: str, stream: str = "stdout") -> Iterator[str]:
        seen: list[str] = []
        failures = 0
        while failures < STREAM_FAILURES:
            containers = self._containers(id)
            began, before = time.monotonic(), len(seen)
            replayed = 0  # a stream that is opened again begins anew: what is word for word what was seen is left out
            try:
                for event, line in self._lines(id, containers, stream):
                    if event == "complete":
                        return
                    if event == "error":
                        raise CloudError(f"CaaS ended the log stream: {line}", "The run's own logs: `homerun logs RUN`")
                    if replayed < before and seen[replayed] == line:
                        replayed += 1
                        continue
                    replayed = before
                    seen.append(line)
                    yield line
            except ApiError as error:
                if error.status not in (404, 429) and error.status < 500:
                    raise
            if self.status(id).over:
                return
            broken = containers and len(seen) == before and time.monotonic() - began < SILENCE_S
            failures = failures + 1 if broken else 0
            time.sleep(STREAM_RETRY_S)
        raise CloudError(
            f"the log stream of {id} broke off {STREAM_FAILURES} times", "The run's own: `homerun logs RUN`"
        )

    def _lines(self, id: str, containers: list[dict[str, Any]], stream: str) -> Iterator[tuple[str, str]]:
        if not containers:  # not yet started
            return iter(())
        return self._api.events(f"/deployment/{id}/log/{containers[0]['container_id']}", stream=stream)

    def extend(self, id: str, hours: int) -> None:
        self._api.send("POST", f"/deployment/{id}/extend", {"duration_hours": hours})

    def destroy(self, id: str) -> None:
        self._api.send("DELETE", f"/deployment/{id}")


def _data(answer: Any) -> Any:
    return answer["data"] if isinstance(answer, dict) and "data" in answer else answer


def _number(text: str | None) -> int | str | None:
    return int(text) if text and text.isdigit() else text


def _label(row: dict[str, Any]) -> str:
    return " ".join(str(row.get(key) or "") for key in ("hardware_id", "id", "hardware_name", "name", "brand_name"))


def _offer(row: dict[str, Any], gpus: int) -> Offer | None:
    """A /hardware row of either spelling, if it can hold that many GPUs."""
    hardware = row.get("hardware_id", row.get("id"))
    most = row.get("max_gpus_per_container") or row.get("num_cards") or gpus
    if hardware is None or gpus > most or gpus < (row.get("min_gpus_per_container") or 1):
        return None
    available = row.get("available", row.get("available_replicas"))
    name = row.get("hardware_name") or row.get("name") or str(hardware)
    location = row.get("location")
    return Offer(
        str(hardware),
        str(name),
        gpus,
        None if location is None else str(location),
        int(available) if available is not None else None,
        row.get("price"),
    )


def _deployment(row: dict[str, Any], containers: list[dict[str, Any]] = []) -> Deployment:  # noqa: B006 (never changed)
    events = [event for container in containers for event in container.get("container_events") or []]
    urls = [container["public_url"] for container in containers if container.get("public_url")]
    environment = (row.get("container_config") or {}).get("env_variables") or {}  # in a deployment's details alone
    usd, left, served = (row.get(key) for key in ("amount_paid", "compute_minutes_remaining", "compute_minutes_served"))
    minutes = (left or 0) + (served or 0)
    return Deployment(
        id=str(row["id"]),
        name=row.get("name") or row.get("resource_private_name") or environment.get("HOMERUN_RUN_ID") or "",
        status=" ".join(str(row.get("status") or "unknown").lower().replace("_", " ").replace("-", " ").split()),
        hardware=row.get("hardware_name") or "",
        gpus=row.get("total_gpus") or row.get("hardware_quantity") or 0,
        usd=usd,
        minutes_left=left,
        minutes_served=served,
        url=urls[0] if urls else None,
        notes=tuple(str(event.get("message")) for event in events),
        usd_per_hour=usd / minutes * 60 if usd and minutes else None,
        deadline=environment.get("HOMERUN_DEADLINE"),
    )
