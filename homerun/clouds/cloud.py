"""What a cloud must be able to do, and the words in which it answers.

A cloud is only ever asked to start a container from an image and an environment, to say how it is, and to end it. That
the training worked is never its word to give: success is `_SUCCESS` and a verified manifest in the bucket.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from homerun.errors import Exit, HomerunError, RequestError
from homerun.settings import Settings

if TYPE_CHECKING:
    from homerun.clouds.order import Order

# Nothing further happens to a deployment in one of these states.
TERMINAL = frozenset({"completed", "failed", "destroyed", "terminated", "exited"})


class CloudError(HomerunError):
    """The cloud refused, or could not be reached; nothing that it was asked for was done."""

    code = Exit.PREFLIGHT


class UnknownOutcome(CloudError):
    """A request was sent and its answer lost: it may have been done."""


@dataclass(frozen=True)
class Offer:
    """Hardware that can be rented. available: how many such boxes there are, None where the cloud does not say."""

    hardware: str
    gpu: str
    gpus: int
    location: str | None = None
    available: int | None = None
    usd_per_hour: float | None = None  # of the whole box; a hint, `Cloud.quote` decides


@dataclass(frozen=True)
class Quote:
    """What a box will cost: the price that the cap is held against."""

    usd: float
    hours: int

    def usd_per_gpu_hour(self, gpus: int) -> float:
        return self.usd / self.hours / gpus


@dataclass(frozen=True)
class Deployment:
    """One rented box. status: lower case, spaces; `unknown` for what no documentation names."""

    id: str
    name: str
    status: str
    hardware: str = ""
    gpus: int = 0
    usd: float | None = None  # paid so far, or for good where time is prepaid
    minutes_left: int | None = None
    minutes_served: int | None = None
    url: str | None = None  # where its port 8000 answers
    notes: tuple[str, ...] = ()  # the platform's own words, oldest first
    usd_per_hour: float | None = None
    deadline: str | None = None  # the HOMERUN_DEADLINE that its job was started with, where the platform tells

    @property
    def over(self) -> bool:
        return self.status in TERMINAL


class Cloud(Protocol):
    """A provider. Calls raise CloudError; `deploy` raises UnknownOutcome where it cannot tell."""

    name: str
    prepaid: bool  # time is paid in advance, not refunded, and ends without grace

    def check_key(self) -> None: ...

    def offers(self, gpu: str, gpus: int) -> list[Offer]:
        """What can be rented now, cheapest first where the cloud tells."""

    def quote(self, offer: Offer, hours: int) -> Quote: ...

    def find(self, name: str) -> list[Deployment]:
        """The deployments of that name that are not over."""

    def deploy(self, order: "Order", offer: Offer) -> str:
        """Start it, once; its id."""

    def deployments(self) -> list[Deployment]:
        """All of the account's, newest first."""

    def status(self, id: str) -> Deployment: ...

    def logs(self, id: str, stream: str = "stdout") -> Iterator[str]:
        """Lines as they come, until the container is over."""

    def extend(self, id: str, hours: int) -> None:
        """Book more time, where time is booked."""

    def destroy(self, id: str) -> None: ...


def open_cloud(name: str, settings: Settings) -> Cloud:
    """The cloud of that name, with its key from the environment. Raises RequestError."""
    from homerun.clouds.caas import CaaS
    from homerun.clouds.runpod import RunPod

    if name == "caas":
        return CaaS(_key(settings, "IOCLOUD_API_KEY", "Make one at https://ai.io.net/ai/api-keys, project io-cloud"))
    if name == "runpod":
        return RunPod(_key(settings, "RUNPOD_API_KEY", "Make one in RunPod's console, Settings, API Keys"))
    raise RequestError(f"there is no cloud {name!r}", "Choose caas or runpod")


def check_known(cloud: Cloud, id: str) -> None:
    """RequestError for an id that is not the account's: a read of one may be answered as one of a new deployment is."""
    if id not in (each.id for each in cloud.deployments()):
        raise RequestError(f"there is no deployment {id}", f"`homerun deployments --on {cloud.name} --all` lists them")


def _key(settings: Settings, name: str, hint: str) -> str:
    value = getattr(settings, name.lower())
    if value is None:
        raise RequestError(f"{name} is not set", hint)
    return value.get_secret_value()
