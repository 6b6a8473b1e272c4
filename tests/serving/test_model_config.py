"""The models of a ModelServerConfig, in the official classes' bytes and as text files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_serving.config import model_server_config_pb2

from servable.errors import InvalidArgumentError, NotFoundError, ServableError
from servable.serving import model_config
from servable.serving.model_config import All, Latest, ModelConfig, Policy, Specific
from servable.wire import messages

ONE = 'name: "m" base_path: "/models/m" model_platform: "tensorflow"'
MODEL_TYPE, PLATFORM = "ModelServerConfig::model_type (deprecated)", "ModelServerConfig::model_platform"


def message(text: str) -> Any:
    """Our message, out of the bytes of the official one."""
    official = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    return messages.ModelServerConfig.FromString(official.SerializeToString())


def parse(*configs: str) -> list[ModelConfig]:
    text = "".join(f"config {{ {config} }}" for config in configs)
    return model_config.parse(message(f"model_config_list {{ {text} }}"), where="")


def refused(*configs: str) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(*configs)
    return str(caught.value)


def folders(*versions: int) -> dict[int, Path]:
    return {version: Path(f"/models/m/{version}") for version in versions}


def test_a_list_is_read_with_everything_in_it() -> None:
    first = """
        name: "first" base_path: "/models/first" model_platform: "tensorflow"
        model_version_policy { specific { versions: 42 versions: 43 } }
        version_labels { key: "stable" value: 42 }
        version_labels { key: "canary" value: 43 }
        version_labels { key: "odd" value: -1 }
    """
    second = 'name: "second" base_path: "/other" model_platform: "tensorflow"'
    got = parse(first, second)
    assert got == [
        ModelConfig(
            "first", Path("/models/first"), Specific((42, 43)), {"stable": 42, "canary": 43, "odd": -1}, "tensorflow"
        ),
        ModelConfig("second", Path("/other"), Latest(1), {}, "tensorflow"),
    ]
    with pytest.raises(TypeError):
        got[0].labels["stable"] = 1  # type: ignore[index]


def test_a_config_can_be_a_key() -> None:
    assert len({*parse(ONE), *parse(ONE)}) == 1


def test_an_empty_list_is_a_list() -> None:
    assert parse() == []


def test_an_empty_name_is_accepted() -> None:
    assert parse('base_path: "/m" model_platform: "tensorflow"')[0].name == ""


def test_the_deprecated_type_means_the_same_platform() -> None:
    assert parse('name: "m" base_path: "/models/m" model_type: TENSORFLOW') == parse(ONE)


# policies


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Latest(1)),
        ("model_version_policy {}", Latest(1)),
        ("model_version_policy { latest {} }", Latest(1)),
        ("model_version_policy { latest { num_versions: 0 } }", Latest(1)),
        ("model_version_policy { latest { num_versions: 2 } }", Latest(2)),
        ("model_version_policy { latest { num_versions: 4294967295 } }", Latest(2**32 - 1)),
        ("model_version_policy { all {} }", All()),
        ("model_version_policy { specific {} }", Specific(())),
        ("model_version_policy { specific { versions: 3 versions: -1 versions: 3 } }", Specific((3, -1, 3))),
    ],
)
def test_policies_are_read(text: str, policy: Policy) -> None:
    assert parse(f"{ONE} {text}")[0].policy == policy


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (Latest(), [10]),
        (Latest(0), [10]),
        (Latest(2), [10, 9]),
        (Latest(2**32 - 1), [10, 9, 2, -3]),
        (All(), [10, 9, 2, -3]),
        (Specific(()), []),
        (Specific((2, 7, -3, 2)), [2, -3]),
        (Specific((7,)), []),
    ],
)
def test_policies_choose_the_highest_first(policy: Policy, chosen: list[int]) -> None:
    found = folders(9, 10, -3, 2)
    got = policy.choose(found)
    assert list(got) == chosen
    assert got == {version: found[version] for version in chosen}
    assert policy.choose({}) == {}


# paths


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("/models/m", "/models/m"),
        ("/models/m/", "/models/m"),
        ("file:///models/m", "/models/m"),
        ("FILE:///models/m", "/models/m"),
        ("file:///models/a%20b", "/models/a%20b"),
        ("/models/gs://x", "/models/gs://x"),
    ],
)
def test_local_folders_are_accepted(given: str, path: str) -> None:
    assert parse(f'name: "m" base_path: "{given}" model_platform: "tensorflow"')[0].base_path == Path(path)


@pytest.mark.parametrize("given", ["models/m", "", "./m", "file:/m", "~/m", "://m"])
def test_relative_paths_are_refused_in_the_originals_words(given: str) -> None:
    assert refused(f'name: "m" base_path: "{given}" model_platform: "tensorflow"') == (
        f"Expected model m to have an absolute path or URI; got base_path()={given}"
    )


@pytest.mark.parametrize("given", ["gs://bucket/m", "s3://bucket", "hdfs://host:1/m", "file://host/m", "file://m"])
def test_other_file_systems_are_refused(given: str) -> None:
    assert refused(f'name: "m" base_path: "{given}" model_platform: "tensorflow"') == (
        f"Model m has the base_path {given}; only local folders are read, as /path or file:///path"
    )


def test_a_path_that_no_system_call_takes_is_refused() -> None:
    assert "NUL character" in refused('name: "m" base_path: "/m\\000" model_platform: "tensorflow"')


# the original's checks


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            'name: "m" base_path: "/m" model_type: TENSORFLOW model_platform: "tensorflow"',
            f"Illegal setting both {MODEL_TYPE} and {PLATFORM}, model name is m",
        ),
        ('name: "m" base_path: "/m"', f"Illegal setting neither {MODEL_TYPE} nor {PLATFORM}, model name is m"),
        ('name: "m" base_path: "/m" model_type: OTHER', "ModelServerConfig::model_type choice 2 not supported."),
        (
            'name: "m" base_path: "/m" model_platform: "caffe"',
            "Model m requests unsupported platform caffe",
        ),
        (f"{ONE} logging_config {{}}", "No request-logger-creator provided. Model m sets logging_config"),
        (
            f"{ONE} logging_config {{ sampling_config {{ sampling_rate: 1 }} }}",
            "No request-logger-creator provided. Model m sets logging_config",
        ),
    ],
)
def test_what_the_original_refuses_is_refused(config: str, expected: str) -> None:
    assert refused(config) == expected
    assert refused('name: "good" base_path: "/good" model_platform: "tensorflow"', config) == expected


def test_an_unknown_model_type_is_not_supported() -> None:
    unknown = message(f"model_config_list {{ config {{ {ONE} }} }}")
    unknown.model_config_list.config[0].model_type = 9
    unknown.model_config_list.config[0].model_platform = ""
    with pytest.raises(InvalidArgumentError, match=r"^ModelServerConfig::model_type choice 9 not supported\.$"):
        model_config.parse(unknown, where="")


def test_a_name_may_be_listed_once() -> None:
    relative = 'name: "other" base_path: "relative"'
    assert refused(relative, ONE, ONE) == "Illegal to list model m multiple times in config list"


def test_the_path_is_looked_at_before_the_platform() -> None:
    assert "absolute path" in refused('name: "a" base_path: "/a"', 'name: "b" base_path: "b"')


@pytest.mark.parametrize("text", ["", 'custom_model_config { type_url: "type.googleapis.com/x" }'])
def test_only_a_list_is_supported(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        model_config.parse(message(text), where="")
    assert str(caught.value) == (
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
    )


def test_an_error_says_where_the_list_comes_from() -> None:
    listed = message(f"model_config_list {{ config {{ {ONE} }} config {{ {ONE} }} }}")
    with pytest.raises(InvalidArgumentError, match=r"^models\.config: Illegal to list model m multiple times"):
        model_config.parse(listed, where="models.config")


# files


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(f"# ours\nmodel_config_list {{\n  config {{ {ONE} }}\n}}\n")
    assert model_config.read(file) == parse(ONE)
    file.write_text("model_config_list {}")
    assert model_config.read(file) == []


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        model_config.read(tmp_path / "none")
    assert str(caught.value) == f"{tmp_path / 'none'}; No such file or directory"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{tmp_path} cannot be read: "):
        model_config.read(tmp_path)


@pytest.mark.parametrize("text", ["", " \n\t", "# nothing\n", "custom_model_config {}"])
def test_a_file_without_a_list_is_not_an_empty_list(text: str, tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(text)
    with pytest.raises(InvalidArgumentError) as caught:
        model_config.read(file)
    assert str(caught.value).startswith(f"{file}; Invalid argument: it has no model_config_list")


@pytest.mark.parametrize(
    "content",
    [
        b"model_config_list {",
        b"model_config_list { config { nam: 'm' } }",
        b"\xff\xfe",
        b"model_config_list { config { version_labels { key: 'x' value: 9223372036854775808 } } }",
    ],
)
def test_what_is_no_config_names_the_file(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=f"^Invalid protobuf file: '{file}': not a ModelServerConfig"):
        model_config.read(file)


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text("model_config_list { config { name: 'm' base_path: 'm' } }")
    with pytest.raises(InvalidArgumentError, match=f"^{file}: Expected model m to have an absolute path or URI; got"):
        model_config.read(file)


@given(size=st.integers(0, 400))
def test_a_half_written_file_is_never_taken_for_a_whole_one(
    size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    labels = 'version_labels { key: "stable" value: 1 }'
    text = f"model_config_list {{\n  config {{ {ONE} {labels} }}\n  config {{ {ONE.replace('m', 'n')} }}\n}}"
    file = tmp_path_factory.mktemp("half") / "models.config"
    file.write_text(text[: min(size, len(text) - 1)])
    with pytest.raises(ServableError):
        model_config.read(file)
