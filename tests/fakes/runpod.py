"""A fake RunPod: REST v1 for pods and the GraphQL query for prices."""

import uuid
from typing import Any

from tests.fakes.http import FakeService, Reply, Request

KNOWN = """
    name imageName gpuTypeIds gpuCount gpuTypePriority cloudType interruptible containerDiskInGb volumeInGb env ports
    volumeMountPath networkVolumeId dockerEntrypoint dockerStartCmd containerRegistryAuthId templateId dataCenterIds
    allowedCudaVersions minRAMPerGPU minVCPUPerGPU minDownloadMbps supportPublicIp locked
"""


class FakeRunPod(FakeService):
    def __init__(self, key: str = "runpod-key-of-the-test") -> None:
        super().__init__()
        self.key = key
        self.pods: dict[str, dict[str, Any]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.gpus = [
            {"id": "NVIDIA H100 80GB HBM3", "displayName": "H100 SXM", "memoryInGb": 80, "securePrice": 3.49},
            {"id": "NVIDIA H200", "displayName": "H200 SXM", "memoryInGb": 141, "securePrice": 4.59},
            {"id": "NVIDIA B200", "displayName": "B200", "memoryInGb": 180, "securePrice": None},
        ]

    def add_pod(self, **fields: Any) -> str:
        pod = uuid.uuid4().hex[:14]
        self.pods[pod] = {"id": pod, "desiredStatus": "RUNNING", "costPerHr": 27.92, **fields}
        return pod

    def answer(self, request: Request) -> Reply:
        if request.headers.get("authorization") != f"Bearer {self.key}":
            return Reply(401, {"error": "Unauthorized"})
        if request.path == "/graphql":
            return Reply(200, {"data": {"gpuTypes": self.gpus}})
        parts = request.path.removeprefix("/v1/").split("/")
        if parts == ["pods"] and request.method == "GET":
            name = request.query.get("name")
            return Reply(200, [pod for pod in self.pods.values() if name in (None, pod.get("name"))])
        if parts == ["pods"] and request.method == "POST":
            body = request.json()
            self.bodies.append(body)
            if unknown := set(body) - set(KNOWN.split()):
                return Reply(400, {"error": f"unknown field {sorted(unknown)[0]}"})
            return Reply(201, self.pods[self.add_pod(**body, lastStartedAt="2026-11-21T02:31:00Z")])
        if parts[0] != "pods" or parts[1] not in self.pods:
            return Reply(404, {"error": "pod not found"})
        pod = self.pods[parts[1]]
        if request.method == "DELETE":
            del self.pods[parts[1]]
            return Reply(204)
        if parts[2:] == ["stop"]:
            pod["desiredStatus"] = "EXITED"
        return Reply(200, pod)
