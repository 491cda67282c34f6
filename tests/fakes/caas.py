"""A fake io.net CaaS, made from its documented schema: strict bodies, dropped args, late reads, log streams that break.

`launch(body)` is called for every accepted deployment, so that a test can start the real container or process.
"""

import re
import uuid
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.fakes.http import FakeService, Reply, Request

PREFIX = "/enterprise/v1/io-cloud/caas"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Container(_Body):
    replica_count: int = Field(ge=1)
    traffic_port: int = Field(ge=1, le=65535)
    env_variables: dict[str, str] = {}
    secret_env_variables: dict[str, str] = {}
    entrypoint: list[str] | None = None
    args: list[str] | None = None
    command: str | None = None
    public_ingress_enabled: bool | None = None
    tls_required: bool | None = None


class _Registry(_Body):
    image_url: str
    registry_username: str | None = None
    registry_secret: str | None = None


class _Deploy(_Body):
    resource_private_name: str
    hardware_id: int | str
    duration_hours: int = Field(ge=1, le=8760)
    gpus_per_container: int = 8
    location_ids: list[int | str] | None = Field(None, max_length=1)
    node_pool_id: str | None = None
    resource_id: str | None = None
    payment_source: str = "credits"
    on_incomplete_booking: str = "full_refund"
    container_config: _Container
    registry_config: _Registry


class _Extend(_Body):
    duration_hours: int = Field(ge=1, le=8760)


class FakeCaaS(FakeService):
    def __init__(self, key: str = "iocloud-key-of-the-test") -> None:
        super().__init__()
        self.key = key
        self.price_per_hour = 27.88
        self.deployments: dict[str, dict[str, Any]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.hidden: dict[str, int] = {}  # reads of a new deployment that are still answered with 404
        self.hide_reads = 1
        self.enveloped = True  # /hardware: {"data": {"hardware": [...]}} or {"data": [...]}
        self.lines: list[str] = []
        self.public_url = "http://127.0.0.1:9"  # where nothing answers
        self.breaks: list[int] = []  # the next log streams end, without `complete`, after so many lines
        self.launch: Callable[[dict[str, Any]], None] = lambda body: None
        self.hardware = [
            {"hardware_id": 203, "hardware_name": "H100 SXM5", "brand_name": "NVIDIA", "location": "FI", "available": 3,
             "price": 27.88, "max_gpus_per_container": 8, "min_gpus_per_container": None},
            {"hardware_id": 210, "hardware_name": "B300", "brand_name": "NVIDIA", "location": "US", "available": 1,
             "price": 63.86, "max_gpus_per_container": 8, "min_gpus_per_container": None},
            {"hardware_id": 211, "hardware_name": "H200", "brand_name": "NVIDIA", "location": "US", "available": 0,
             "price": 31.0, "max_gpus_per_container": 8, "min_gpus_per_container": None},
        ]  # fmt: skip

    @property
    def api(self) -> str:
        return self.url + PREFIX

    def add(self, name: str, hours: int, gpus: int = 8, **environ: str) -> str:
        """A deployment that runs; its id."""
        id = str(uuid.uuid4())
        self.deployments[id] = {
            "id": id,
            "name": name,
            "status": "running",
            "created_at": "2026-11-21T02:31:00",
            "started_at": None,
            "amount_paid": round(self.price_per_hour * hours, 2),
            "total_gpus": gpus,
            "hardware_id": 203,
            "hardware_name": "H100 SXM5",
            "compute_minutes_served": 0,
            "compute_minutes_remaining": hours * 60,
            "container_config": {"env_variables": environ},
        }
        return id

    def set_status(self, id: str, status: str) -> None:
        self.deployments[id]["status"] = status

    def answer(self, request: Request) -> Reply:
        path = request.path.removeprefix(PREFIX)
        if path == "/hardware":
            return Reply(200, {"data": {"hardware": self.hardware} if self.enveloped else self.hardware})
        if request.headers.get("x-api-key") != self.key:
            return Reply(401, {"detail": "Invalid API key"})
        try:
            return self._route(request, path)
        except ValidationError as error:
            detail = [{"loc": ["body", *e["loc"]], "msg": e["msg"], "type": e["type"]} for e in error.errors()]
            return Reply(422, {"detail": detail})

    def _route(self, request: Request, path: str) -> Reply:
        if (request.method, path) == ("POST", "/deploy"):
            return self._deploy(request.json())
        if path == "/deployments":
            return self._list(request)
        if path == "/available-replicas":
            place = {"203": (1, "FI", "Finland", 3), "210": (2, "US", "United States", 1)}.get(
                request.query["hardware_id"]
            )
            keys = ("id", "iso2", "name", "available_replicas")
            return Reply(200, {"data": [dict(zip(keys, place, strict=True))] if place else []})
        if path == "/price":
            return self._price(request.query)
        match = re.fullmatch(r"/deployment/([0-9a-f-]{36})(?:/(containers|extend|log/[\w-]+))?", path)
        if not match or match[1] not in self.deployments:
            return Reply(404, {"detail": "Deployment not found"})
        id, what = match.groups()
        deployment = self.deployments[id]
        if request.method == "DELETE":
            deployment["status"] = "termination requested"
            return Reply(200, {"status": "TERMINATION REQUESTED", "deployment_id": id})
        if request.method == "POST" and what == "extend":
            hours = _Extend.model_validate(request.json()).duration_hours
            deployment["compute_minutes_remaining"] += hours * 60
            deployment["amount_paid"] = round(deployment["amount_paid"] + self.price_per_hour * hours, 2)
            return Reply(200, {"data": deployment})
        if self.hidden.get(id):
            self.hidden[id] -= 1
            return Reply(404, {"detail": "Deployment not found"})
        if what == "containers":
            return Reply(200, {"data": {"total": 1, "workers": [self._worker(deployment)]}})
        if what and what.startswith("log/"):
            return self._log()
        return Reply(200, {"data": {key: value for key, value in deployment.items() if key != "name"}})

    def _deploy(self, body: dict[str, Any]) -> Reply:
        order = _Deploy.model_validate(body)
        if order.location_ids and order.node_pool_id:
            return Reply(400, {"status": "failed", "error": "location_ids and node_pool_id exclude each other"})
        self.bodies.append(body)
        config = order.container_config
        id = self.add(order.resource_private_name, order.duration_hours, order.gpus_per_container)
        self.deployments[id] |= {"hardware_id": order.hardware_id}
        self.deployments[id]["container_config"] = {
            "entrypoint": config.entrypoint,
            "args": None,  # dropped, as the real one does
            "env_variables": config.env_variables,
            "traffic_port": config.traffic_port,
            "image_url": order.registry_config.image_url,
            "secret_env_keys": sorted(config.secret_env_variables),
        }
        self.hidden[id] = self.hide_reads
        self.launch(body)
        return Reply(200, {"status": "success", "deployment_id": id})

    def _list(self, request: Request) -> Reply:
        page, size = int(request.query.get("page", 1)), int(request.query.get("page_size", 10))
        rows = list(reversed(self.deployments.values()))
        fields = ("id", "name", "status", "hardware_name", "compute_minutes_remaining", "compute_minutes_served")
        shown = [{key: row[key] for key in fields} for row in rows[(page - 1) * size : page * size]]
        return Reply(200, {"data": {"deployments": shown, "total": len(rows), "statuses": []}})

    def _price(self, query: dict[str, str]) -> Reply:
        if not re.fullmatch(r"\[\d+\]", query.get("location_ids", "")):
            return Reply(422, {"detail": [{"loc": ["query", "location_ids"], "msg": "not a list of ids", "type": "x"}]})
        total = self.price_per_hour * int(query["duration_hours"]) * int(query["gpus_per_container"]) / 8
        return Reply(200, {"data": {"total_cost_usdc": round(total, 2), "replica_count": 1, "ionet_fee": 0}})

    def _worker(self, deployment: dict[str, Any]) -> dict[str, Any]:
        return {
            "container_id": "c-" + deployment["id"][:8],
            "device_id": "d-1",
            "status": deployment["status"],
            "hardware": "H100",
            "gpus_per_container": 8,
            "container_events": [{"time": "2026-11-21T02:32:00", "message": "image pulled"}],
            "public_url": self.public_url,
        }

    def _log(self) -> Reply:
        count = self.breaks.pop(0) if self.breaks else None
        chunks = [f"data: {line}\n\n".encode() for line in self.lines[:count]]
        if count is not None:
            return Reply(stream=chunks, whole=False, headers={"Content-Type": "text/event-stream"})
        return Reply(stream=[*chunks, b"event: complete\ndata: \n\n"], headers={"Content-Type": "text/event-stream"})
