"""`homerun deploy`: rent a box, start the job on it, follow it until the model is in the bucket."""

import hashlib
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from homerun.bucket import restore
from homerun.bucket.checks import check_writable
from homerun.bucket.store import Missing, Store, open_for_a_person
from homerun.clouds.cloud import open_cloud
from homerun.clouds.follow import Verdict, follow
from homerun.clouds.gist import check_wrapper
from homerun.clouds.launch import Launch, Wish, check_price, prepare, start
from homerun.clouds.order import read_template
from homerun.errors import Exit, HomerunError, RequestError
from homerun.job.request import Request
from homerun.job.run import new_id
from homerun.redact import Redactor
from homerun.settings import Settings

TELL_S = 600.0  # between two lines about one phase
QUIET_S = 180.0  # a run that failed and whose lease has not changed for so long is not started again by its box


def command(
    file: Path = typer.Argument(
        Path("caas_deployment.json"), help="What to ask for; ${NAMES} come from the environment."
    ),
    on: str = typer.Option("caas", "--on", help="caas or runpod."),
    image: str = typer.Option(None, envvar="IMAGE", help="The job image, as pushed by build_and_push.sh."),
    gpu: str = typer.Option("H100", help="Part of the GPU's name."),
    gpus: int = typer.Option(8, min=1, help="GPUs of the box."),
    hours: float = typer.Option(4.0, min=0.1, help="How long you think it takes; a d20 on 8 H100s takes about 4."),
    reserve_hours: float = typer.Option(1.0, min=0.0, help="Booked on top, for boot, landing and surprises."),
    max_cost: float = typer.Option(
        None, min=0.0, metavar="USD", help="Refuse a higher price; unset: HOMERUN_BUDGET_USD, or ask."
    ),
    run_id: str = typer.Option(None, envvar="HOMERUN_RUN_ID", help="Go on with this run; unset: a new one."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check and price everything, show it, send nothing."),
    detach: bool = typer.Option(False, "--detach", help="Do not follow."),
) -> None:
    """Deploy the job, and follow it until the bucket says how it ended.

    Examples:

        homerun deploy --dry-run

        homerun deploy --max-cost 150

        homerun deploy --on runpod --gpu H200 --gpus 4 --hours 7 --max-cost 200
    """
    settings = Settings.load(homerun_run_id=run_id)
    if not image:
        raise RequestError("there is no image", "Give --image USER/nanochat-training:TAG (build_and_push.sh prints it)")
    if not settings.has_bucket:
        raise RequestError("no R2 variables are set, and a box's disk is lost with it", "docs/r2.md makes a bucket")
    template, cloud = read_template(file), open_cloud(on, settings)
    cap = max_cost if max_cost is not None else settings.homerun_budget_usd
    id = settings.homerun_run_id or new_id(Path(settings.homerun_script or "speedrun").stem, set())
    wish = Wish(id, image, gpu, gpus, hours, reserve_hours, cap)
    Request.from_arguments(settings.model_copy(update={"homerun_script": None}))  # phase arguments that cannot be read
    check_wrapper(os.environ)
    launch = prepare(cloud, template, wish, settings, os.environ, datetime.now(UTC))
    store = open_for_a_person(settings)
    verdict, seen, hint = check_writable(store, id)
    if verdict == "fail":
        raise HomerunError(seen, hint, Exit.PREFLIGHT)
    if dry_run:
        print(json.dumps(launch.order.shown(), indent=2))
        _say(f"{on}: ${launch.quote.usd:,.2f} for {launch.quote.hours} h; nothing was sent")
        if cap is not None:
            check_price(launch, cap, None)
        return
    terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if launch.token and not terminal:
        raise RequestError(
            "there is no terminal to show a new serve token at", "Set HOMERUN_SERVE_TOKEN to one of yours"
        )
    check_price(launch, cap, (lambda text: typer.confirm(text, err=True)) if terminal else None)
    deployment = start(cloud, launch)
    _introduce(launch, deployment, on)
    if detach:
        print(deployment)
        return
    redactor = Redactor({**settings.secrets(), **launch.order.secrets})
    try:
        code, text = follow(
            cloud, deployment, Judge(store, id), _say, lambda line: print(redactor.text(line), flush=True)
        )
    except KeyboardInterrupt:
        _say(f"no longer followed; the box goes on. `homerun status {id}`, or end it: `homerun destroy {deployment}`")
        raise
    _say(text)
    if cloud.prepaid and code != Exit.GOOD:
        _say(f"go on with the same run: homerun deploy --run-id {id}")
    sys.exit(int(code))


def _introduce(launch: Launch, deployment: str, on: str) -> None:
    until = f"{launch.deadline:%Y-%m-%d %H:%M}Z"
    _say(f"deployed {launch.order.name} as {deployment} for ${launch.quote.usd:,.2f}, until {until}")
    if launch.token:
        _say(f"serve token of its page and API, shown this once: {launch.token}")
    _say(f"in another terminal: homerun watch {launch.order.name} · homerun deployments --on {on} --logs {deployment}")


def current(metadata: dict[str, Any]) -> dict[str, Any]:
    """The phase that runs, else the last one; {} before the first. metadata: the run's metadata.json."""
    phases = [phase for phase in metadata.get("phases") or [] if not phase.get("background")]
    return phases[-1] if phases else {}


def progress(metadata: dict[str, Any]) -> str:
    """`run: base_train step 1200 of 21400, $12.31; step 1000 is in the bucket`."""
    phase, usd = current(metadata), (metadata.get("cost") or {}).get("usd")
    step = f" step {phase['step']} of {phase.get('steps') or '?'}" if phase.get("step") is not None else ""
    secured = (metadata.get("loss_if_it_died") or {}).get("secured_step")
    return (
        f"run: {phase.get('phase')}{step}"
        + (f", ${usd:,.2f}" if usd is not None else "")
        + (f"; step {secured} is in the bucket" if secured is not None else "")
    )


class Judge:
    """How the run ended according to the bucket, or None while it may go on. Compares no clocks but its own."""

    def __init__(self, store: Store, run: str):
        self.store, self.run = store, run
        self._lease: object = None
        self._phase, self._told = "", 0.0
        self._since = time.monotonic()

    def __call__(self) -> Verdict | None:
        try:
            info = restore.run_info(self.store, self.run)
            if info.good:
                return self._good()
        except HomerunError as error:  # a hiccup of the bucket is no verdict
            _say(error.what)
            return None
        if info.lease != self._lease:
            self._lease, self._since = info.lease, time.monotonic()
        self._tell(info.metadata)
        code = info.metadata.get("code")
        if code and time.monotonic() - self._since > QUIET_S:
            return Exit(code), f"{self.run} ended with {code}: {info.metadata.get('reason') or 'see its report'}"
        return None

    def _tell(self, metadata: dict[str, Any]) -> None:
        """How far the run is, by its own word: at each new phase, and every `TELL_S` beside that."""
        phase = current(metadata)
        name = phase.get("phase")
        if name and (name != self._phase or time.monotonic() - self._told > TELL_S):
            self._phase, self._told = name, time.monotonic()
            _say(progress(metadata))

    def _good(self) -> Verdict:
        wrong = unproven(self.store, self.run)
        if wrong:
            text = f"_SUCCESS is there, but {len(wrong)} objects are not as it says: {', '.join(wrong[:5])}"
            return Exit.UNPROVEN, text
        return Exit.GOOD, f"{self.run} is home, proven in {self.store.url}. Take it: `homerun pull {self.run} DIR`"


def unproven(store: Store, run: str) -> list[str]:
    """The objects that are not as `_SUCCESS` and the manifest say, by size and ETag (`homerun verify` reads bytes)."""
    try:
        vouched = json.loads(store.get(f"{run}/_SUCCESS")[0])
        manifest = store.get(f"{run}/manifest.json")[0]
    except (Missing, ValueError):
        return ["_SUCCESS"]
    if hashlib.sha256(manifest).hexdigest() != vouched["manifest"]["sha256"]:
        return ["manifest.json"]
    wrong = []
    for entry in restore.read_manifest(store, run).entries.values():
        head = store.head(f"{run}/{entry.key}")
        if head is None or (head.bytes, head.etag) != (entry.bytes, entry.etag):
            wrong.append(entry.key)
    return wrong


def _say(text: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)
