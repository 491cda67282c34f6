"""RunPod: pods that are billed by the second until they are ended, and started again whenever their container exits.

So a pod ends itself (HOMERUN_AFTER=stop, entrypoint/box.py): deleted after success, stopped otherwise. There are no
logs in the API; the run's own are in the bucket.
"""

import os
from collections.abc import Iterator
from typing import Any

from homerun.clouds.api import Api
from homerun.clouds.cloud import CloudError, Deployment, Offer, Quote, UnknownOutcome
from homerun.clouds.order import Order
from homerun.errors import RequestError

REST, GRAPHQL = "https://rest.runpod.io/v1", "https://api.runpod.io"
PRICES = "query { gpuTypes { id displayName memoryInGb securePrice } }"
# Preflight counts 79 GB for a d20, 127 for a d26, 201 for a d32 (shards, environment, kept checkpoints, optimizers);
# the image and its caches come on top. All on the container's own disk: a pod's volume belongs to root, is billed on
# after a stop, and would hold nothing that the bucket has not.
DISK_GB = 300
HINTS = {
    400: "Correct that field",
    401: "Check RUNPOD_API_KEY (RunPod's console, Settings, API Keys)",
    403: "Give the key of RUNPOD_API_KEY write access to pods",
    404: "`homerun deployments --on runpod` lists what there is",
}


class RunPod:
    """A client for REST v1. key: RUNPOD_API_KEY."""

    name, prepaid = "runpod", False

    def __init__(self, key: str, url: str | None = None):
        headers = {"Authorization": f"Bearer {key}"}
        rest = url or os.environ.get("RUNPOD_API_URL", REST)
        self._api = Api("RunPod", rest, headers, HINTS)
        self._graphql = Api("RunPod", os.environ.get("RUNPOD_GRAPHQL_URL", GRAPHQL), headers, HINTS)

    def check_key(self) -> None:
        self._api.get("/pods")

    def offers(self, gpu: str, gpus: int) -> list[Offer]:
        rows = self._graphql.get("/graphql", query=PRICES)["data"]["gpuTypes"]
        found = [
            Offer(row["id"], row["displayName"], gpus, usd_per_hour=row["securePrice"] * gpus)
            for row in rows
            if row.get("securePrice") and gpu.lower() in f"{row['id']} {row['displayName']}".lower()
        ]
        return sorted(found, key=lambda offer: offer.usd_per_hour or 0.0)

    def quote(self, offer: Offer, hours: int) -> Quote:
        if offer.usd_per_hour is None:
            raise CloudError(f"RunPod names no price for {offer.hardware}", "Choose another --gpu")
        return Quote(offer.usd_per_hour * hours, hours)

    def find(self, name: str) -> list[Deployment]:
        return [each for each in self.deployments() if each.name == name and not each.over]

    def deploy(self, order: Order, offer: Offer) -> str:
        try:
            answer = self._api.send("POST", "/pods", pod_body(order, offer))
        except UnknownOutcome as error:
            if found := self.find(order.name):
                return found[0].id
            raise UnknownOutcome(
                error.what, "Look at `homerun deployments --on runpod` before you deploy again"
            ) from None
        return str(answer["id"])

    def deployments(self) -> list[Deployment]:
        return [_deployment(row) for row in self._api.get("/pods")]

    def status(self, id: str) -> Deployment:
        return _deployment(self._api.get(f"/pods/{id}"))

    def logs(self, id: str, stream: str = "stdout") -> Iterator[str]:
        raise RequestError("RunPod's API has no logs", "The run's own are in the bucket: `homerun logs RUN -f`")

    def extend(self, id: str, hours: int) -> None:
        pass  # billed until it is ended; only its job must know

    def destroy(self, id: str) -> None:
        self._api.send("DELETE", f"/pods/{id}")


def pod_body(order: Order, offer: Offer) -> dict[str, Any]:
    """`POST /pods` for an order. The account's console shows a pod's environment, secrets included."""
    return {
        "name": order.name,
        "imageName": order.registry_config.image_url,
        "gpuTypeIds": [offer.hardware],
        "gpuCount": offer.gpus,
        "cloudType": "SECURE",
        "containerDiskInGb": DISK_GB,
        "volumeInGb": 0,
        "dockerEntrypoint": order.container_config.entrypoint or [],
        "dockerStartCmd": [],
        "ports": [f"{order.container_config.traffic_port}/http"],
        "env": order.environment,
    }


def _deployment(row: dict[str, Any]) -> Deployment:
    ports = row.get("ports") or []
    http = next((port.partition("/")[0] for port in ports if port.endswith("/http")), None)
    return Deployment(
        id=row["id"],
        name=row.get("name") or "",
        status=str(row.get("desiredStatus") or "unknown").lower(),
        hardware=(row.get("machine") or {}).get("gpuTypeId") or ", ".join(row.get("gpuTypeIds") or []),
        gpus=row.get("gpuCount") or 0,
        url=f"https://{row['id']}-{http}.proxy.runpod.net" if http else None,
        usd_per_hour=row.get("costPerHr"),
        deadline=(row.get("env") or {}).get("HOMERUN_DEADLINE"),
    )
