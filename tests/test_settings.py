"""Settings: their sources, the order of precedence, and the messages for invalid settings."""

from pathlib import Path

import pytest

from penstock.engine.catalog import ENGINES
from penstock.errors import StartError
from penstock.server import with_local_model
from penstock.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the test in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "penstock.toml") -> None:
    Path(name).write_text(text, encoding="utf-8")


def refusal() -> str:
    with pytest.raises(StartError) as caught:
        load_settings()
    return f"{caught.value} | {caught.value.hint}"


def test_flag_wins_over_variable_and_variable_over_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().port == 8000
    write("port = 1")
    assert load_settings().port == 1
    monkeypatch.setenv("PENSTOCK_PORT", "2")
    assert load_settings().port == 2
    assert load_settings(port=3).port == 3


def test_each_setting_comes_from_where_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    write('port = 1\nslots = 4\nhost = "::1"')
    monkeypatch.setenv("PENSTOCK_SLOTS", "5")
    settings = load_settings(host="127.0.0.2")
    assert (settings.port, settings.slots, settings.host) == (1, 5, "127.0.0.2")


def test_the_file_may_be_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    write("port = 1")
    write("port = 2", "other.toml")
    monkeypatch.setenv("PENSTOCK_CONFIG", "other.toml")
    assert load_settings().port == 2


def test_lists_in_a_variable_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CORS_ORIGIN", "null, https://example.org")
    assert load_settings().cors_origin == ["null", "https://example.org"]
    assert load_settings(cors_origin=["*"]).cors_origin == ["*"]
    assert load_settings(cors_origin=["http://[::1]:3000"]).cors_origin == ["http://[::1]:3000"]


def test_engines_parameters_come_from_its_table_and_flags_win() -> None:
    write('[engine.llamacpp]\nn_ctx = 1024\nflash = true\n[engine.mock]\ntext = "hi"')
    settings = load_settings(engine_arg=["n_ctx=2048", "kind=q8_0", 'name="8"', "scale=0.5"])
    assert settings.engine_params == {
        "n_ctx": 2048,
        "flash": True,
        "kind": "q8_0",
        "name": "8",
        "scale": 0.5,
    }
    assert load_settings(engine="mock").engine_params == {"text": "hi"}


@pytest.mark.parametrize("engine", ["llamacpp", "vllm"])
def test_the_context_is_an_argument_of_the_engine(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def context() -> object:
        settings = load_settings(engine=engine)
        return ENGINES[engine].options(settings.engine_settings, settings.engine_params)["context"]

    assert context() == 0
    write("context = 8192")
    assert context() == 8192
    monkeypatch.setenv("PENSTOCK_CONTEXT", "16384")
    assert context() == 16384


def test_the_engine_may_be_named_beside_its_tables_or_alone() -> None:
    write('engine = "mock"')
    assert load_settings().engine == "mock"
    write('[engine]\nname = "mock"\n[engine.mock]\ntext = "hi"')
    assert load_settings().engine == "mock"
    assert load_settings().engine_params == {"text": "hi"}
    assert load_settings(engine="llamacpp").engine_params == {}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "rill"),
        ({"model": "./models/qwen-q4.gguf"}, "qwen-q4"),
        ({"model": "unsloth/Qwen3-0.6B-GGUF:Q4_K_M"}, "Qwen3-0.6B-GGUF"),
        ({"engine": "mock"}, "mock"),
        ({"model": "a/b", "model_name": "mine"}, "mine"),
        ({"model": "a/b", "model_name": "mine, claude-x,mine,"}, "mine"),
        ({"model": "a/b", "model_name": " , "}, "b"),
    ],
    ids=str,
)
def test_model_is_served_under_a_name_that_tells_what_it_is(
    settings: dict[str, str], name: str
) -> None:
    assert load_settings(**settings).served_name == name


def test_names_after_the_first_are_aliases() -> None:
    settings = load_settings(model="a/b", model_name="mine, claude-x,mine,gpt-y")
    assert settings.served_names == ("mine", "claude-x", "gpt-y")
    assert with_local_model(load_settings(model_name="a,b")).served_names == ("a", "b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prot = 1", ["no setting 'prot'", "port"]),
        ("[serve]\nport = 1", ["no setting 'serve'", "--help"]),
        ("engine_tables = {}", ["no setting 'engine_tables'"]),
        ('port = "x"', ["'port' is not valid", "integer", "a free port"]),
        ("port = 70000", ["'port' is not valid", "65535"]),
        ("slots = -1", ["'slots' is not valid", "The number of requests that run at once"]),
        ("drain_timeout = inf", ["'drain_timeout' is not valid"]),
        ("body_timeout = nan", ["'body_timeout' is not valid"]),
        ('cors_origin = ["https://example.org/"]', ["'cors_origin' is not valid"]),
        ('cors_origin = ["example.org"]', ["'cors_origin' is not valid"]),
        ("max_connections = 99999999999", ["'max_connections' is not valid"]),
        ('engine = "vlm"', ["'engine' is not valid", "'llamacpp'"]),
        ('engine = "a.b:"', ["'engine' is not valid", "package.module:Class"]),
        ("engine = 5", ["'engine' is not valid"]),
        ("[engine.llamacp]\nn_ctx = 1", ["no engine 'llamacp'", "llamacpp"]),
        ("[engine]\nmock = 5", ["engine.mock is not a table"]),
        ("port = ", ["penstock.toml cannot be read", "Invalid value"]),
        (
            'engine = "mock"\n[engine.mock]\ntext = "hi"',
            ["cannot be read", 'with name = "NAME" in the table [engine]'],
        ),
    ],
)
def test_a_mistake_in_the_file_is_named_with_the_next_step(text: str, expected: list[str]) -> None:
    write(text)
    said = refusal()
    assert all(part in said for part in expected), said


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("PENSTOCK_PROT", "1", ["no variable PENSTOCK_PROT", "PENSTOCK_PORT"]),
        ("PENSTOCK_PORT", "abc", ["'port' is not valid", "integer"]),
        ("PENSTOCK_ENGINE_TABLES", "{}", ["no variable PENSTOCK_ENGINE_TABLES"]),
        ("PENSTOCK_CONFIG", "nowhere.toml", ["nowhere.toml cannot be read", "No such file"]),
        ("PENSTOCK_CONFIG", ".", ["cannot be read", "directory"]),
    ],
)
def test_a_mistake_in_the_environment_is_named_with_the_next_step(
    variable: str, value: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    said = refusal()
    assert all(part in said for part in expected), said


def test_a_file_that_is_not_utf_8_is_said_to_be_unreadable() -> None:
    Path("penstock.toml").write_bytes(b"\xff")
    assert "penstock.toml cannot be read" in refusal()


@pytest.mark.parametrize("argument", ["n_ctx", "=5", ""])
def test_engine_argument_that_is_no_pair_is_refused(argument: str) -> None:
    with pytest.raises(StartError, match="name=value"):
        _ = Settings(engine_arg=[argument]).engine_params


def test_every_setting_says_what_it_does() -> None:
    for name, field in Settings.model_fields.items():
        assert field.exclude or field.description, name
