"""The script's environment: built, not inherited.

It holds what the script needs, what the user passes through, and no secret that the script does not use: keys of
buckets and clouds never reach upstream's processes or its dependencies.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from homerun.redact import MIN_SECRET
from homerun.settings import Settings

NAMES = frozenset(
    """LANG LANGUAGE TZ TMPDIR USER LOGNAME SHELL TERM HOSTNAME LD_LIBRARY_PATH LD_PRELOAD
    http_proxy https_proxy no_proxy all_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS GIT_SSL_CAINFO
    CC CXX CPATH LIBRARY_PATH MKL_NUM_THREADS OPENBLAS_NUM_THREADS MASTER_ADDR MASTER_PORT
    TIKTOKEN_CACHE_DIR""".split()  # noqa: SIM905
)
PREFIXES = (
    *("LC_", "CUDA_", "CUDNN_", "NVIDIA_", "NCCL_", "GLOO_", "UCX_", "FI_", "TORCH", "PYTORCH_", "TRITON_", "OMP_"),
    *("KMP_", "PIP_", "UV_", "CARGO_", "RUSTUP_", "HF_", "NANOCHAT_", "WANDB_", "XLA_", "HSA_", "ROCR_", "HIP_"),
)
# Never, not even when homerun_pass_env names one; it can name anything else.
PRIVATE = ("R2_", "AWS_", "HOMERUN_", "SCRIPT_", "IOCLOUD_", "RUNPOD_", "GITHUB_", "GH_")

# Caches that all runs share, by the tool's own variable, under the real user's home.
SHARED_CACHES = {
    "UV_CACHE_DIR": ".cache/uv",
    "UV_PYTHON_INSTALL_DIR": ".local/share/uv/python",
    "PIP_CACHE_DIR": ".cache/pip",
    "HF_HOME": ".cache/huggingface",
    "TORCHINDUCTOR_CACHE_DIR": ".cache/torchinductor",
    "TRITON_CACHE_DIR": ".cache/triton",
}
# Tools that find their home only in HOME: upstream's first generation sources `$HOME/.cargo/env`.
LINKED = (".cargo", ".rustup")


def build_environment(settings: Settings, home: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of the script. home: its HOME, inside the run's folder. environ: the caller's (default: ours).

    Touches nothing; `prepare_home` makes the folder.
    """
    environ = os.environ if environ is None else environ
    real_home = Path(environ.get("HOME") or Path.home())
    built = {name: value for name, value in environ.items() if name in NAMES or name.startswith(PREFIXES)}
    for name, folder in SHARED_CACHES.items():
        built.setdefault(name, str(real_home / folder))
    for name in settings.homerun_pass_env:
        if name in environ:
            built[name] = environ[name]
    hidden = _secrets(settings, environ)
    built = {name: value for name, value in built.items() if not name.startswith(PRIVATE) and value not in hidden}
    for name, secret in (("WANDB_API_KEY", settings.wandb_api_key), ("HF_TOKEN", settings.hf_token)):
        if secret:  # it may have come from a file
            built[name] = secret.get_secret_value()
    if settings.wandb_api_key is None:
        # Some scripts name a W&B run by themselves (miniseries.sh), and would end asking for a key.
        built.setdefault("WANDB_MODE", "offline")
    if settings.wandb_run:
        built["WANDB_RUN"] = settings.wandb_run
    built |= {"HOME": str(home), "PATH": _path(settings, environ), "PYTHONUNBUFFERED": "1"}
    if not any(built.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG")):
        built["LANG"] = "C.UTF-8"
    built["TERM"] = "dumb"  # the output goes to files
    return built


def prepare_home(home: Path, environ: Mapping[str, str] | None = None) -> None:
    """Make the script's HOME, with links to the real user's tools that are found nowhere else."""
    environ = os.environ if environ is None else environ
    real_home = Path(environ.get("HOME") or Path.home())
    home.mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        if (real_home / name).is_dir() and not (home / name).is_symlink() and not (home / name).exists():
            (home / name).symlink_to((real_home / name).resolve())


def _path(settings: Settings, environ: Mapping[str, str]) -> str:
    """The user's own folder first; then that of our Python, whose trainer recipes use; then the caller's."""
    ours = str(Path(sys.executable).parent)
    inherited = environ.get("PATH") or os.defpath
    return os.pathsep.join(filter(None, [settings.homerun_script_path, ours, inherited]))


def _secrets(settings: Settings, environ: Mapping[str, str]) -> set[str]:
    """Values that must not slip through under another name: every secret but those that the script uses."""
    secrets = settings.secrets()
    used = {secrets.get("WANDB_API_KEY"), secrets.get("HF_TOKEN")}
    private = {value for name, value in environ.items() if name.startswith(PRIVATE) and _looks_secret(name)}
    return {value for value in {*secrets.values(), *private} - used if len(value) >= MIN_SECRET}


def _looks_secret(name: str) -> bool:
    return name.endswith(("_KEY", "_KEY_ID", "_TOKEN", "_SECRET", "_PASSWORD"))
