"""SkyPilot: the order as a task for `sky jobs launch`, on spot machines of whichever cloud is cheapest. Pure.

A spot machine that is taken away is replaced by SkyPilot, the new one is given the same HOMERUN_RUN_ID, and the job
goes on from the bucket. On several nodes SkyPilot only starts things side by side, so homerun's own trainer runs under
torchrun with a static rendezvous (the first node's address): the dynamic one hangs where a name does not resolve.
"""

import json
from typing import Any

from homerun.clouds.order import Order

PORT = 29500
ONE_NODE = "/opt/homerun/entrypoint/docker-entrypoint.sh train"
SEVERAL_NODES = f"""export PATH=/opt/homerun/.venv/bin:$PATH
torchrun \\
  --nnodes="$SKYPILOT_NUM_NODES" --node_rank="$SKYPILOT_NODE_RANK" \\
  --nproc_per_node="$SKYPILOT_NUM_GPUS_PER_NODE" \\
  --master_addr="$(head -n1 <<< "$SKYPILOT_NODE_IPS")" --master_port={PORT} \\
  -m homerun.trainer.base_train -- $TRAIN_ARGS"""


def task(order: Order, gpu: str, nodes: int = 1, spot: bool = True) -> str:
    """The task's YAML. Secrets are named, not written: `sky jobs launch --secret NAME` takes them from the shell."""
    environment = {**order.container_config.env_variables, "HOMERUN_AFTER": "exit"}
    environment.pop("HOMERUN_DEADLINE", None)  # a replaced machine begins later; SkyPilot's own limits apply
    if nodes > 1:
        environment["TRAIN_ARGS"] = "--depth=20"
    document: dict[str, Any] = {
        "name": order.name.lower(),
        "num_nodes": nodes,
        "resources": {
            "image_id": f"docker:{order.registry_config.image_url}",
            "accelerators": f"{gpu}:{order.gpus_per_container}",
            "use_spot": spot,
            "disk_size": 512,
            "ports": [order.container_config.traffic_port],
        },
        "envs": environment,
        "secrets": dict.fromkeys(order.container_config.secret_env_variables),
        "run": ONE_NODE if nodes == 1 else SEVERAL_NODES,
    }
    if spot:
        document["resources"]["job_recovery"] = {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 3}
    secrets = " ".join(f"--secret {name}" for name in document["secrets"])
    head = f"# sky jobs launch {order.name.lower()}.yaml {secrets}\n"
    return head + "\n".join(_yaml(document)) + "\n"


def _yaml(value: dict[str, Any], indent: int = 0) -> list[str]:
    """Block YAML of plain data; scalars as JSON, which is YAML too."""
    lines = []
    for key, item in value.items():
        start = " " * indent + f"{key}:"
        if isinstance(item, dict):
            lines += [start, *_yaml(item, indent + 2)] if item else [f"{start} {{}}"]
        elif isinstance(item, str) and "\n" in item:
            lines += [f"{start} |", *(" " * (indent + 2) + line for line in item.splitlines())]
        else:
            lines.append(f"{start} {json.dumps(item)}")
    return lines
