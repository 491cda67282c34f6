"""Settings: every variable once, typed; secrets from files; one line that names the variable, never its value."""

from pathlib import Path

import pytest

from homerun.errors import Exit, RequestError
from homerun.settings import Settings

R2 = {
    "R2_ACCESS_KEY_ID": "key-id-0123456789",
    "R2_SECRET_ACCESS_KEY": "secret-0123456789",
    "R2_ENDPOINT_URL": "https://example.invalid",
    "R2_BUCKET_NAME": "models",
}


def test_without_any_r2_variable_the_bucket_is_a_folder():
    assert not Settings.load({}).has_bucket


def test_all_four_r2_variables_make_a_bucket():
    assert Settings.load(R2).has_bucket


@pytest.mark.parametrize("missing", R2)
def test_some_but_not_all_r2_variables_are_an_error_that_names_the_missing_one(missing):
    with pytest.raises(RequestError, match=missing) as error:
        Settings.load({name: value for name, value in R2.items() if name != missing})
    assert error.value.code == Exit.REQUEST


def test_an_empty_variable_counts_as_unset():
    assert not Settings.load(dict.fromkeys(R2, "")).has_bucket


def test_a_secret_comes_from_its_file(tmp_path):
    (tmp_path / "key").write_text("from-the-file\n")
    settings = Settings.load({"WANDB_API_KEY_FILE": str(tmp_path / "key")})
    assert settings.secrets() == {"WANDB_API_KEY": "from-the-file"}


def test_a_secret_and_its_file_together_are_an_error(tmp_path):
    with pytest.raises(RequestError, match="HF_TOKEN and HF_TOKEN_FILE"):
        Settings.load({"HF_TOKEN": "abcdefgh", "HF_TOKEN_FILE": str(tmp_path)})


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_an_unreadable_secret_file_is_one_line(tmp_path, content):
    path = tmp_path / "key"
    if content:
        path.write_bytes(content)
    with pytest.raises(RequestError, match="HF_TOKEN_FILE names") as error:
        Settings.load({"HF_TOKEN_FILE": str(path)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOMERUN_PORT", "eighty"),
        ("HOMERUN_PORT", "70000"),
        ("HOMERUN_BUDGET_USD", "-3"),
        ("HOMERUN_DEADLINE", "2026-11-21T18:00:00"),
        ("HOMERUN_KEEP_LAST", "1"),
        ("NPROC_PER_NODE", "eight"),
        ("SCRIPT_SHA256", "abc"),
        ("HOMERUN_RUN_ID", "../../etc"),
        ("KEEP_ALIVE", "perhaps"),
    ],
)
def test_a_wrong_value_names_its_variable_and_ends_in_exit_2(name, value):
    with pytest.raises(RequestError, match=name) as error:
        Settings.load({name: value})
    assert "\n" not in str(error.value)


def test_an_error_never_shows_a_secret_value():
    with pytest.raises(RequestError) as error:
        Settings.load({**R2, "R2_SECRET_ACCESS_KEY": "canary-4711-value", "HOMERUN_PORT": "x", "HF_TOKEN": "abc"})
    assert "canary" not in str(error.value)
    assert "canary" not in repr(Settings.load({**R2, "R2_SECRET_ACCESS_KEY": "canary-4711-value"}))


def test_lists_split_at_commas_and_blanks():
    assert Settings.load({"HOMERUN_SKIP": "tok_eval, base_eval chat_eval-sft"}).homerun_skip == (
        "tok_eval",
        "base_eval",
        "chat_eval-sft",
    )


def test_an_override_wins_over_the_environment():
    assert Settings.load({"HOMERUN_PORT": "1"}, homerun_port=2).homerun_port == 2


def test_every_setting_is_in_the_readme():
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    missing = [name.upper() for name in Settings.model_fields if f"`{name.upper()}`" not in readme]
    assert missing == []
