"""The script's environment is built: what it needs is in it, and no secret that it does not use."""

import os
import secrets
import sys
from pathlib import Path

import pytest

from homerun.settings import Settings
from homerun.upstream.environment import build_environment, prepare_home
from tests.running import run_script

SECRETS = [name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]
USED = {"WANDB_API_KEY", "HF_TOKEN"}
FOREIGN = [
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "OPENAI_API_KEY",
    "GH_TOKEN",
    "AZURE_CLIENT_SECRET",
    "NPM_TOKEN",
]


@pytest.fixture
def environ(tmp_path):
    """A caller's environment with a canary in every secret, ours and others'."""
    found = {name: f"canary-{secrets.token_hex(8)}" for name in [*SECRETS, *FOREIGN]}
    found |= {"R2_ENDPOINT_URL": "https://r2.example.com", "R2_BUCKET_NAME": "bucket", "PATH": os.environ["PATH"]}
    found |= {"HOME": str(tmp_path / "user"), "HOMERUN_DIR": str(tmp_path / "runs")}
    (tmp_path / "user").mkdir()
    return found


def test_no_secret_reaches_the_script_but_those_it_uses(tmp_path, environ):
    environ["HF_COPY"] = environ["R2_SECRET_ACCESS_KEY"]  # a name that passes, a value that must not
    environ["WANDB_BASE_URL"] = "https://wandb.example.com"
    built = build_environment(Settings.load(environ), tmp_path / "home", environ)
    script = "env > ../env\nsh -c env > ../phase-env\n"
    script += "sh -c 'cat /proc/self/environ /proc/$PPID/environ' | tr '\\0' '\\n' > ../raw\n"
    ran = run_script(tmp_path, script, env=built)
    assert ran.outcome.ok, ran.outcome
    for name in ("env", "phase-env", "raw"):
        seen = (tmp_path / name).read_text()
        assert {secret for secret in [*SECRETS, *FOREIGN] if environ[secret] in seen} == USED
        assert "WANDB_BASE_URL=https://wandb.example.com" in seen
        assert "HOMERUN" not in seen and "R2_" not in seen


def test_a_secret_from_a_file_arrives_by_its_name(tmp_path, environ):
    (tmp_path / "key").write_text("canary-from-a-file\n")
    del environ["WANDB_API_KEY"]
    environ["WANDB_API_KEY_FILE"] = str(tmp_path / "key")
    assert build_environment(Settings.load(environ), tmp_path, environ)["WANDB_API_KEY"] == "canary-from-a-file"


def test_what_the_user_names_passes_and_a_private_name_does_not(tmp_path, environ):
    environ |= {"MY_FLAG": "1", "OTHER": "2", "HOMERUN_PASS_ENV": "MY_FLAG,OPENAI_API_KEY,AWS_SESSION_TOKEN,NOT_SET"}
    built = build_environment(Settings.load(environ), tmp_path, environ)
    assert built["MY_FLAG"] == "1" and built["OPENAI_API_KEY"] == environ["OPENAI_API_KEY"]
    assert not {"OTHER", "AWS_SESSION_TOKEN", "NOT_SET"} & built.keys()


def test_the_home_is_the_runs_and_caches_stay_the_users(tmp_path, environ):
    built = build_environment(Settings.load(environ), tmp_path / "home", environ)
    assert built["HOME"] == str(tmp_path / "home")
    for name in ("UV_CACHE_DIR", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "PIP_CACHE_DIR"):
        assert built[name].startswith(environ["HOME"])
    assert "XDG_CACHE_HOME" not in built, "it would move nanochat's own cache"
    environ["HF_HOME"] = "/big/hf"
    assert build_environment(Settings.load(environ), tmp_path, environ)["HF_HOME"] == "/big/hf"


def test_the_users_folder_comes_first_in_the_path_then_our_python(tmp_path, environ):
    environ["HOMERUN_SCRIPT_PATH"] = "/my/bin"
    path = build_environment(Settings.load(environ), tmp_path, environ)["PATH"].split(":")
    assert path[:2] == ["/my/bin", str(Path(sys.executable).parent)] and path[2:] == environ["PATH"].split(":")


def test_proxies_certificates_gpus_and_locale_pass(tmp_path, environ):
    wanted = {"HTTPS_PROXY": "http://p", "no_proxy": "x", "SSL_CERT_FILE": "/c", "CUDA_VISIBLE_DEVICES": "0,1"}
    wanted |= {"NCCL_DEBUG": "INFO", "TORCHDYNAMO_DISABLE": "1", "LD_LIBRARY_PATH": "/l", "LC_ALL": "de_DE.UTF-8"}
    wanted |= {"UV_INDEX_URL": "http://i", "PIP_INDEX_URL": "http://i", "NANOCHAT_DTYPE": "float32", "TMPDIR": "/t"}
    built = build_environment(Settings.load(environ), tmp_path, environ | wanted)
    assert wanted.items() <= built.items() and "LANG" not in built
    assert built["PYTHONUNBUFFERED"] == "1"
    assert build_environment(Settings.load(environ), tmp_path, environ)["LANG"] == "C.UTF-8"


def test_the_wandb_run_is_the_settings(tmp_path, environ):
    built = build_environment(Settings.load(environ, wandb_run="run-1"), tmp_path, environ)
    assert built["WANDB_RUN"] == "run-1"


def test_a_script_that_names_a_wandb_run_itself_does_not_end_asking_for_a_key(tmp_path, environ):
    without = {name: value for name, value in environ.items() if not name.startswith("WANDB_")}
    modes = [
        build_environment(Settings.load(given), tmp_path, given).get("WANDB_MODE")
        for given in (without, without | {"WANDB_API_KEY": "k" * 40}, without | {"WANDB_MODE": "disabled"})
    ]
    assert modes == ["offline", None, "disabled"]


def test_home_has_the_users_rust_by_a_link_and_nothing_else(tmp_path, environ):
    (tmp_path / "user" / ".cargo").mkdir()
    (tmp_path / "user" / ".cache" / "nanochat" / "base_checkpoints").mkdir(parents=True)
    for _ in range(2):
        prepare_home(tmp_path / "home", environ)
        assert [path.name for path in (tmp_path / "home").iterdir()] == [".cargo"]
    assert (tmp_path / "home" / ".cargo").resolve() == tmp_path / "user" / ".cargo"
