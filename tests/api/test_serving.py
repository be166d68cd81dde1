"""A server's models keep their names while the engine's models come and go."""

import pytest

from penstock.api.serving import ServedModel
from penstock.engine.protocol import ModelInfo
from penstock.errors import Problem


def info_of(name: str, *others: ModelInfo, context: int = 100) -> ModelInfo:
    return ModelInfo(name, "remote", context, 4, models=others)


class Engine:
    info: ModelInfo | None = None


def served(engine: Engine, *names: str) -> ServedModel:
    return ServedModel(names, lambda: engine.info)


def test_the_only_model_s_name_comes_before_its_aliases() -> None:
    engine = Engine()
    model = served(engine, "remote", "alias")
    engine.info = info_of("found")
    assert model.named(None) == "found"
    assert model.names == ("found", "remote", "alias")
    assert model.listed == ("found", "alias"), "nobody named it remote"
    assert model.info("alias") is model.info("found") is model.info() is engine.info
    assert set(model.models()) == {"found"}


def test_a_name_chooses_the_model_and_other_names_mean_the_first() -> None:
    engine = Engine()
    model = served(engine, "remote")
    b = info_of("b", context=7)
    engine.info = info_of("a", b)
    assert model.named("b") == "b"
    assert model.info("b") is b
    for name in ("", "a", "remote", "claude"):
        assert model.info(name).id == "a"
    assert list(model.models()) == ["a", "b"]
    with pytest.raises(Problem, match=r"It serves a, b\."):
        model.named("c")


def test_the_first_model_stays_the_first_when_only_another_is_there_after_a_restart() -> None:
    engine = Engine()
    model = served(engine, "remote")
    engine.info = info_of("a", info_of("b", context=7))
    assert model.info("b").context_length == 7
    engine.info = info_of("b", context=9)  # the engine's process is new, and a is away
    assert model.named(None) == "a"
    assert (model.info("a").id, model.info().id) == ("a", "a")
    assert model.info("b").context_length == 9
    engine.info = info_of("b", info_of("a"), info_of("c"))
    assert (model.info().id, model.info("c").id) == ("a", "c")
    assert model.names == ("a", "remote", "b", "c")
    assert model.listed == ("a", "b", "c")


def test_a_name_that_a_model_has_is_listed_before_and_after_it_is_loaded() -> None:
    engine = Engine()
    model = served(engine, "rill", "alias")
    assert model.listed == ("rill", "alias")
    engine.info = info_of("rill")
    assert model.named("alias") == "alias"
    assert model.info().id == "rill"
    assert model.listed == ("rill", "alias")
