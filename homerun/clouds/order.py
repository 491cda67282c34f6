"""The order for a box: caas_deployment.json with its ${NAMES} filled in, checked before anything is sent. Pure.

One file serves all clouds: its form is that of io.net CaaS's `POST /deploy`, whose server refuses unknown keys, and the
other clouds take what they need of it.

In the file, "${NAME}" must be set, "${NAME:-text}" has a default, and an entry that is only "${NAME:-}" is left out
when the name is unset.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from homerun.errors import RequestError
from homerun.redact import Redactor
from homerun.settings import R2_NAMES

REFERENCE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)(?::-([^}]*))?\}")
IMAGE = re.compile(  # registry, repository, tag, digest
    r"([a-z0-9.-]+(:\d+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9._-]*)?(@sha256:[0-9a-f]{64})?"
)
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|API_KEY|ACCESS_KEY")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class ContainerConfig(_Strict):
    replica_count: Literal[1]  # two replicas of one run would fight for its lease, and the second is paid for nothing
    traffic_port: int = Field(ge=1, le=65535)
    env_variables: dict[str, str] = {}
    secret_env_variables: dict[str, str] = {}
    entrypoint: list[str] | None = None
    command: str | None = None
    public_ingress_enabled: bool | None = None
    tls_required: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_args(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("args"):
            raise ValueError("CaaS drops args without a word; put the whole command into entrypoint")
        if isinstance(value, dict) and {"image", "image_url"} & set(value):
            raise ValueError("the image belongs into registry_config.image_url")
        return value


class RegistryConfig(_Strict):
    image_url: str
    registry_username: str | None = None
    registry_secret: str | None = None


class Order(_Strict):
    """A whole request. `body()` is what CaaS gets; `shown()` is the same with every secret replaced by its name."""

    resource_private_name: str = Field(min_length=1, max_length=191)
    hardware_id: int | str
    duration_hours: int = Field(ge=1, le=8760)
    gpus_per_container: int = Field(ge=1)
    location_ids: list[int | str] | None = Field(None, max_length=1)
    node_pool_id: str | None = None
    resource_id: str | None = None
    payment_source: Literal["credits", "payment"] | None = None
    on_incomplete_booking: Literal["full_refund", "partial_refund", "extend_booked"] | None = None
    container_config: ContainerConfig
    registry_config: RegistryConfig

    @property
    def name(self) -> str:
        return self.resource_private_name

    @property
    def environment(self) -> dict[str, str]:
        """What the container sees, secrets included."""
        return {**self.container_config.env_variables, **self.container_config.secret_env_variables}

    @property
    def secrets(self) -> dict[str, str]:
        values = dict(self.container_config.secret_env_variables)
        if self.registry_config.registry_secret:
            values["REGISTRY_SECRET"] = self.registry_config.registry_secret
        return values

    def body(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)

    def shown(self) -> dict[str, Any]:
        body = self.body()
        for name in body["container_config"]["secret_env_variables"]:
            body["container_config"]["secret_env_variables"][name] = f"[{name}]"
        return Redactor(self.secrets).value(body)  # type: ignore[return-value]


def read_template(path: Path) -> dict[str, Any]:
    """The deployment file as it is written. Raises RequestError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or 'not text'})",
            "Give the path of a deployment file",
        ) from None
    except ValueError as error:
        raise RequestError(
            f"{path} is not JSON: {error}", "Compare it with the repository's caas_deployment.json"
        ) from None
    if not isinstance(value, dict):
        raise RequestError(f"{path} is not a JSON object", "Compare it with the repository's caas_deployment.json")
    return value


def names(template: Any) -> set[str]:
    """Every name that a template refers to."""
    return {match[1] for match in REFERENCE.finditer(json.dumps(template))}


def fill(template: Any, values: Mapping[str, str]) -> Any:
    """The template with every `${NAME}` replaced. Raises RequestError naming all that are missing."""
    missing = {m[1] for m in REFERENCE.finditer(json.dumps(template)) if m[2] is None and not values.get(m[1])}
    if missing:
        listed = ", ".join(sorted(missing))
        raise RequestError(
            f"the deployment file needs {listed}", f"`export {sorted(missing)[0]}=…`, then the same command"
        )
    return _fill(template, values)


def _fill(node: Any, values: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        filled = {key: _fill(item, values) for key, item in node.items()}
        return {key: item for key, item in filled.items() if item is not None or node[key] is None}
    if isinstance(node, list):
        return [item for item in (_fill(item, values) for item in node) if item is not None] or None
    if isinstance(node, str):
        text = REFERENCE.sub(lambda match: values.get(match[1]) or match[2] or "", node)
        return None if node and not text else text
    return node


def check(filled: Mapping[str, Any], secrets: Mapping[str, str]) -> Order:
    """The order, or a RequestError that says which field is wrong and why.

    secrets: {name: value} of all that must not be readable in the account's pages.
    """
    try:
        order = Order.model_validate(filled)
    except ValidationError as error:
        text = "; ".join(_explain(problem) for problem in error.errors(include_url=False, include_input=False))
        raise RequestError(f"the deployment file is wrong: {text}", "docs/caas.md has the schema") from None
    if not IMAGE.fullmatch(order.registry_config.image_url):
        raise RequestError(
            f"IMAGE is {order.registry_config.image_url!r}, which names no image", "build_and_push.sh prints it"
        )
    config = order.container_config
    for name, value in config.env_variables.items():
        if name in secrets or SECRET_NAME.search(name) or any(secret in value for secret in secrets.values()):
            raise RequestError(
                f"{name} is or holds a secret, and env_variables are shown to everyone with access to the account",
                "Move it to secret_env_variables",
            )
    missing = [name for name in R2_NAMES if not order.environment.get(name)]
    if missing:
        raise RequestError(
            f"the box would not get {', '.join(missing)}, and its own disk is lost with it",
            f"`export {missing[0]}=…` and name it in the deployment file; docs/r2.md makes a bucket",
        )
    if order.environment.get("HOMERUN_AFTER", "exit") not in ("exit", "hold", "stop"):
        raise RequestError(f"HOMERUN_AFTER is {order.environment['HOMERUN_AFTER']!r}", "Set it to exit, hold or stop")
    if not order.environment.get("HOMERUN_RUN_ID"):
        raise RequestError("the box would not get HOMERUN_RUN_ID, so that a restart could not find its run", "Add it")
    if order.environment.get("HOMERUN_PORT", "8000") != str(config.traffic_port):
        raise RequestError(f"traffic_port is {config.traffic_port}, but the box serves HOMERUN_PORT", "Make them equal")
    return order


def _explain(problem: Any) -> str:
    where, message = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{where} is no field of CaaS's"
    return f"{where}: {message}" if where else message


def booked_hours(estimate: float, reserve: float) -> int:
    """Whole hours to book: the estimate, and a reserve for boot, landing and what goes wrong."""
    return max(1, math.ceil(estimate + reserve - 1e-9))
