"""From a wish ("8 H100s for about 4 hours") to a started box: all is checked and priced before anything is sent."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from homerun.clouds.cloud import Cloud, CloudError, Offer, Quote
from homerun.clouds.order import Order, booked_hours, check, fill
from homerun.errors import RequestError
from homerun.settings import Settings

# Where time is billed until the box is ended: a chat page that nobody talks to ends, and a bucket that is away is
# waited for, because a stopped pod's disk is wiped.
BILLED_DEFAULTS = {"HOMERUN_IDLE_MINUTES": "30", "HOMERUN_UPLOAD_MINUTES": "60"}


@dataclass(frozen=True)
class Wish:
    """hours: the estimate; reserve: added to it and rounded up to what is booked. max_usd: the cap, None to ask."""

    run_id: str
    image: str
    gpu: str
    gpus: int
    hours: float
    reserve: float
    max_usd: float | None = None


@dataclass(frozen=True)
class Launch:
    """What would be sent, and what it costs. token: the serve token where one was made, else None."""

    order: Order
    offer: Offer
    quote: Quote
    deadline: datetime
    token: str | None


def values(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """What a deployment file's names stand for: the environment, secrets from their files included."""
    return {**environ, **settings.secrets()}


def prepare(
    cloud: Cloud, template: dict[str, Any], wish: Wish, settings: Settings, environ: Mapping[str, str], now: datetime
) -> Launch:
    """Key, hardware, price, order; nothing is sent. Raises HomerunError."""
    cloud.check_key()
    offers = cloud.offers(wish.gpu, wish.gpus)
    if not offers:
        raise CloudError(
            f"{cloud.name} has no free {wish.gpus}x {wish.gpu} now", "Try another --gpu or --gpus, or later"
        )
    offer, hours = offers[0], booked_hours(wish.hours, wish.reserve)
    quote = cloud.quote(offer, hours)
    deadline = (now + timedelta(hours=hours)).astimezone(UTC).replace(microsecond=0)
    token = None if settings.homerun_serve_token else secrets.token_urlsafe(24)
    budget = settings.homerun_budget_usd or wish.max_usd
    order = check(
        fill(
            template,
            {
                **({} if cloud.prepaid else BILLED_DEFAULTS),
                **{name: value for name, value in values(settings, environ).items() if value},
                **({"HOMERUN_SERVE_TOKEN": token} if token else {}),
                **({"HOMERUN_BUDGET_USD": str(budget)} if budget else {}),
                **({} if cloud.prepaid else {"HOMERUN_AFTER": "stop"}),
                "HOMERUN_RUN_ID": wish.run_id,
                "HOMERUN_DEADLINE": deadline.isoformat().replace("+00:00", "Z"),
                "HOMERUN_GPU_HOUR_PRICE": f"{quote.usd_per_gpu_hour(wish.gpus):.4f}",
                "IMAGE": wish.image,
                "HARDWARE_ID": offer.hardware,
                "LOCATION_ID": offer.location or "",
                "HOURS": str(hours),
                "GPUS": str(wish.gpus),
            },
        ),
        settings.secrets(),
    )
    return Launch(order, offer, quote, deadline, token)


def check_price(launch: Launch, max_usd: float | None, ask: Callable[[str], bool] | None) -> None:
    """RequestError when the quote is over the cap; without a cap a person must say yes."""
    price = f"${launch.quote.usd:,.2f} for {launch.quote.hours} h of {launch.offer.gpus}x {launch.offer.gpu}"
    if max_usd is not None:
        if launch.quote.usd > max_usd:
            raise RequestError(
                f"the price is {price}, over the cap of ${max_usd:,.2f}", "Raise --max-cost or book less"
            )
    elif ask is None:
        raise RequestError(
            f"the price is {price}, and there is no cap and no terminal to ask at", "Give --max-cost USD"
        )
    elif not ask(f"Deploy for {price}?"):
        raise RequestError("not deployed", "The same command asks again; --max-cost USD says it beforehand")


def start(cloud: Cloud, launch: Launch) -> str:
    """Send the order once; the deployment's id. A second one of the same name is refused."""
    if found := cloud.find(launch.order.name):
        raise RequestError(
            f"{launch.order.name} is deployed already, as {found[0].id} ({found[0].status})",
            "Follow it with `homerun status`, or end it first: `homerun destroy " + found[0].id + "`",
        )
    return cloud.deploy(launch.order, launch.offer)
