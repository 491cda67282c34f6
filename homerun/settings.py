"""Every environment variable that homerun reads, once, typed.

`Settings.load()` is the only reader of the environment. Any secret `NAME` may come from a file named in `NAME_FILE`
instead (both set is an error). The public names are those of the README's table; ours begin with `HOMERUN_`.
"""

import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from homerun.errors import RequestError
from homerun.redact import MIN_SECRET, Redactor

R2_NAMES = ("R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "R2_ENDPOINT_URL", "R2_BUCKET_NAME")
UPSTREAM_URL = "https://github.com/karpathy/nanochat"


def _words(value: Any) -> Any:
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


class Settings(BaseSettings):
    """The settings of one process. Attribute names are the variables' names in lower case."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    # The bucket: all four, or none (then a folder under HOMERUN_DIR).
    r2_access_key_id: SecretStr | None = None
    r2_secret_access_key: SecretStr | None = None
    r2_session_token: SecretStr | None = None  # temporary credentials
    r2_endpoint_url: str | None = None
    r2_bucket_name: str | None = None

    # Upstream's own
    wandb_api_key: SecretStr | None = None
    wandb_run: str | None = None
    hf_token: SecretStr | None = None

    # The container
    keep_alive: bool = False
    script_url: str | None = None
    script_sha256: str | None = None
    nproc_per_node: str | None = None  # a number of GPUs, "auto", or 0 for plain `python -m` on the CPU

    # Where, what
    homerun_dir: Path = Path("~/.homerun")
    homerun_run_id: str | None = None
    homerun_adopt: bool = False  # without a run id, go on with the one unfinished run of the same request
    homerun_script: str | None = None  # a recipe's path; unset: the speedrun of homerun_upstream
    homerun_upstream: str = UPSTREAM_URL  # a git URL, or a folder that holds a checkout
    homerun_upstream_ref: str | None = None  # branch, tag or commit; unset: the default branch
    homerun_phase_args: str | None = None  # JSON object: {"base_train": "--depth=26", ...}
    homerun_skip: Annotated[tuple[str, ...], NoDecode] = ()
    homerun_skip_checks: Annotated[tuple[str, ...], NoDecode] = ()  # checks of preflight that you know better than
    homerun_fit: Literal["auto"] | None = None  # apply what `homerun preflight` shows as fit
    homerun_check_steps: bool = False  # some real training steps against a table, before base training begins
    homerun_script_path: str | None = None  # put first in the script's PATH
    homerun_pass_env: Annotated[tuple[str, ...], NoDecode] = ()  # further variables that the script may see

    # Saving and landing
    homerun_save_minutes: float = Field(20.0, gt=0)
    homerun_sync_seconds: float = Field(
        2.0, ge=0.1
    )  # least time between two writes of one key (R2 allows one a second)
    homerun_keep_last: int = Field(2, ge=2)
    homerun_upload_minutes: float = Field(15.0, gt=0)  # how long a transfer is retried before it is given up
    homerun_sync_data: bool = False  # keep shards, tokenizer and other inputs in the bucket, for the next run
    homerun_max_attempts: int = Field(5, ge=1)

    # Money and time
    homerun_gpu_hour_price: float | None = Field(None, ge=0)  # USD per GPU and hour
    homerun_budget_usd: float | None = Field(None, gt=0)
    homerun_deadline: datetime | None = None
    homerun_watchdog_minutes: float = Field(30.0, gt=0)
    homerun_grace_seconds: float = Field(10.0, ge=0)  # from TERM to KILL of the script's processes

    # Port 8000
    homerun_port: int = Field(8000, ge=0, le=65535)
    homerun_serve_token: SecretStr | None = None
    homerun_public_status: bool = False
    homerun_idle_minutes: float | None = Field(None, gt=0)

    # Clouds and publishing (never passed on to a run)
    iocloud_api_key: SecretStr | None = None
    runpod_api_key: SecretStr | None = None
    github_token: SecretStr | None = None
    script_pubkey: str | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # load() hands in exactly what it was given

    @field_validator("homerun_skip", "homerun_skip_checks", "homerun_pass_env", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _words(value)

    @field_validator("homerun_dir", mode="after")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("homerun_deadline", mode="after")
    @classmethod
    def _zoned(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("needs a time zone, as in 2026-11-21T18:00:00Z")
        return value

    @field_validator("homerun_run_id", mode="after")
    @classmethod
    def _plain_id(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError("must be letters, digits, '.', '_' and '-', at most 100 of them")
        return value

    @field_validator("nproc_per_node", mode="after")
    @classmethod
    def _nproc(cls, value: str | None) -> str | None:
        if value is not None and value != "auto" and not value.isdigit():
            raise ValueError('must be a number of GPUs, 0 for the CPU, or "auto"')
        return value

    @field_validator("script_sha256", mode="after")
    @classmethod
    def _sha256(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{64}", value.lower()):
            raise ValueError("must be 64 hexadecimal digits")
        return value.lower() if value else value

    @model_validator(mode="after")
    def _whole_bucket(self) -> "Settings":
        missing = [name for name in R2_NAMES if not getattr(self, name.lower())]
        if 0 < len(missing) < len(R2_NAMES):
            raise ValueError(f"{', '.join(missing)} not set although other R2_ variables are; set all four or none")
        return self

    @property
    def has_bucket(self) -> bool:
        """Whether runs go to S3/R2; otherwise to the folder `HOMERUN_DIR/bucket`."""
        return self.r2_bucket_name is not None

    def secrets(self) -> dict[str, str]:
        """{variable name: value} of every secret that is set."""
        values = {name.upper(): getattr(self, name) for name in type(self).model_fields}
        return {name: value.get_secret_value() for name, value in values.items() if isinstance(value, SecretStr)}

    def redactor(self) -> Redactor:
        return Redactor(self.secrets())

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> "Settings":
        """The settings of `environ` (default: the process's), with `overrides` (lower-case names) on top.

        Empty variables count as unset. Raises RequestError naming the variable, never its value.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            variable = name.upper()
            if "SecretStr" in str(field.annotation):
                value = _read_secret(variable, environ)
            else:
                value = environ.get(variable)
            if value:
                values[name] = value
        values |= {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls(**values)
        except ValidationError as error:
            raise RequestError("; ".join(map(_explain, error.errors(include_url=False))), _NEXT) from None


_NEXT = "Correct the variable, or unset it; the README's table says what each one takes"


def _explain(problem: Any) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    return f"{str(problem['loc'][0]).upper()}: {message}" if problem["loc"] else message


def _read_secret(variable: str, environ: Mapping[str, str]) -> str | None:
    value, file = environ.get(variable), environ.get(f"{variable}_FILE")
    if value and file:
        raise RequestError(
            f"{variable} and {variable}_FILE are both set", f"Unset one of them: `unset {variable}_FILE`"
        )
    if file:
        try:
            value = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise RequestError(
                f"{variable}_FILE names {file}, which cannot be read ({reason})", "Check the path"
            ) from None
    if value and len(value.strip()) < MIN_SECRET:
        raise RequestError(
            f"{variable} has under {MIN_SECRET} characters", "Set the whole key; it was probably cut off"
        )
    return value.strip() if value else None
