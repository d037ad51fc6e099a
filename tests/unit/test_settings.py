"""Settings: read from the environment once, unknown names and malformed values refused, secrets never shown."""

from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator.errors import SettingsError
from orchestrator.settings import Settings, variables


def test_without_settings_everything_is_embedded_below_one_home(tmp_path):
    settings = Settings.from_env({"ORCHESTRATOR_HOME": str(tmp_path)})

    assert settings.database_url is None
    assert settings.engine_url is None
    assert (settings.home, settings.models_dir, settings.adapters_dir) == (
        tmp_path,
        tmp_path / "models",
        tmp_path / "adapters",
    )


def test_values_take_the_type_of_their_setting():
    settings = Settings.from_env(
        {
            "ORCHESTRATOR_PORT": "9000",
            "ORCHESTRATOR_REQUEST_TIMEOUT_S": "2.5",
            "ORCHESTRATOR_API_KEYS": "one, two,,",
            "ORCHESTRATOR_PROMPTS_DIR": "prompts",
            "ORCHESTRATOR_ADAPTER_SERVING": "runtime",
            "PATH": "is not ours",
        }
    )

    assert (settings.port, settings.request_timeout_s) == (9000, 2.5)
    assert settings.api_keys == ("one", "two")
    assert settings.prompts_dir == Path("prompts")
    assert settings.adapter_serving == "runtime"


def test_an_empty_variable_counts_as_unset():
    assert Settings.from_env({"ORCHESTRATOR_PORT": "", "ORCHESTRATOR_DATABASE_URL": ""}) == Settings.from_env({})


def test_an_argument_wins_over_the_environment_and_none_does_not():
    settings = Settings.from_env({"ORCHESTRATOR_PORT": "1", "ORCHESTRATOR_HOST": "h"}, port=2, host=None)

    assert (settings.port, settings.host) == (2, "h")


def test_an_unknown_variable_is_refused_and_the_known_ones_are_named():
    with pytest.raises(SettingsError, match=r"ORCHESTRATOR_DATABSE_URL is not a setting.*ORCHESTRATOR_DATABASE_URL"):
        Settings.from_env({"ORCHESTRATOR_DATABSE_URL": "x"})


def test_an_unknown_argument_is_refused():
    with pytest.raises(SettingsError, match="databse_url"):
        Settings.from_env({}, databse_url="x")


@pytest.mark.parametrize(
    ("variable", "text"), [("PORT", "high"), ("REQUEST_TIMEOUT_S", "soon"), ("ADAPTER_SERVING", "sometimes")]
)
def test_a_malformed_value_is_refused_by_name(variable, text):
    with pytest.raises(SettingsError, match=f"ORCHESTRATOR_{variable}.*{text}"):
        Settings.from_env({f"ORCHESTRATOR_{variable}": text})


def test_secrets_are_not_shown():
    secrets = {
        "ORCHESTRATOR_DATABASE_URL": "postgresql://me:hunter2@host/db",
        "ORCHESTRATOR_ENGINE_API_KEY": "hunter2",
        "ORCHESTRATOR_EMBEDDER_API_KEY": "hunter2",
        "ORCHESTRATOR_API_KEYS": "hunter2",
    }

    assert "hunter2" not in repr(Settings.from_env(secrets))


def test_a_home_under_the_user_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert Settings.from_env({"ORCHESTRATOR_HOME": "~/orchestrator"}).home == tmp_path / "orchestrator"


def test_every_setting_has_a_variable_and_a_help_text():
    assert len(variables()) == len(fields(Settings))
    assert all(name.startswith("ORCHESTRATOR_") and text.endswith(".") for name, text in variables().items())
