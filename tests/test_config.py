"""Options: where they come from, which outweighs which, what is refused."""

from pathlib import Path

import pytest
from pydantic import Field, field_validator

from cellray.config import JobConfig, make_config, parse_config
from cellray.errors import InputError, nearest


class Example(JobConfig):
    """An example."""

    output: str = Field(description="where to")
    obs_columns: tuple[str, ...] = Field((), description="names, comma-separated")
    size: int = Field(3, gt=0, description="how many [cells]")
    fast: bool = Field(False, description="be quick")
    kinds: tuple[str, ...] = Field(("a", "b"), description="which")


class Distinct(JobConfig):
    """Has a check of its own."""

    names: tuple[str, ...] = Field(("a",), description="names, each once")

    @field_validator("names")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("name each once")
        return value


def parse(*argv: str) -> Example:
    return parse_config(Example, argv, "example")


def test_command_line() -> None:
    config = parse("--output", "o", "--obs-columns", "a,b", "--size=4", "--fast")
    assert config == Example(output="o", obs_columns=("a", "b"), size=4, fast=True)
    assert type(config) is Example


def test_command_line_outweighs_environment_outweighs_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.toml"
    path.write_text('output = "file"\nsize = 5\nfast = true\nobs_columns = ["x"]\n')
    monkeypatch.setenv("CELLRAY_SIZE", "6")
    monkeypatch.setenv("CELLRAY_OUTPUT", "environment")
    config = parse("--config", str(path), "--output", "line")
    assert config == Example(output="line", size=6, fast=True, obs_columns=("x",))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--output", "o", "--colour", "red"], "--colour"),
        ([], "--output is missing"),
        (["--output", "o", "--size", "0"], "--size.*greater than 0"),
        (["--output", "o", "--size", "many"], "--size 'many'"),
        (["--output", "o", "--config"], "example: --config names a TOML file"),
        (["--output", "o", "--config", "nowhere.toml"], "nowhere.toml: .*no such file"),
    ],
)
def test_bad_options_get_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)


def test_lists_in_the_environment_and_dashes_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLRAY_OBS_COLUMNS", "a, b")
    monkeypatch.setenv("CELLRAY_OUTPUT", "o")
    assert parse().obs_columns == ("a", "b")
    monkeypatch.setenv("CELLRAY_OBS_COLUMNS", '["c"]')
    assert parse().obs_columns == ("c",)
    monkeypatch.delenv("CELLRAY_OBS_COLUMNS")
    (tmp_path / "c.toml").write_text('obs-columns = ["x"]\n')
    assert parse("--config", str(tmp_path / "c.toml")).obs_columns == ("x",)
    assert parse("--obs-columns", "").obs_columns == ()


def test_a_slip_in_a_variables_name_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CELLRAY_OUTPTU", "o")
    parse("--output", "o")
    assert "CELLRAY_OUTPTU is no option of this job" in caplog.text


def test_an_unknown_key_in_the_file_lists_the_options(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('output = "o"\nsiez = 5\n')
    with pytest.raises(InputError, match=r"--siez is not an option of this job .*'--size'"):
        parse("--config", str(tmp_path / "c.toml"))


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("{")
    with pytest.raises(InputError, match=r"c\.toml: --config names a TOML file"):
        parse("--config", str(tmp_path / "c.toml"))


def test_help_shows_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "how many [cells] (default: 3)" in shown
    assert "--config FILE.toml" in shown


def test_help_speaks_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse("--help")
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "--obs-columns A,B,..." in shown
    assert "--size N" in shown
    assert "how many [cells] (default: 3)" in shown
    assert "None" not in shown
    assert "()" not in shown
    assert "which (default: a,b)" in shown


def test_a_slip_of_the_finger_is_named() -> None:
    with pytest.raises(InputError, match=r"--obs-colums \(did you mean --obs-columns\?\)"):
        parse("--output", "o", "--obs-colums", "a")


def test_a_name_far_off_is_no_slip() -> None:
    assert nearest("--actors", ["--corpus", "--output"]) is None
    assert nearest("--corpsu", ["--corpus", "--output"]) == "--corpus"
    with pytest.raises(InputError, match=r"found --colour\. See"):
        parse("--output", "o", "--colour", "red")


def test_words_of_the_validator_are_not_shown() -> None:
    with pytest.raises(InputError) as caught:
        parse_config(Distinct, ["--names", "a,a"], "example")
    assert caught.value.found.startswith("--names ")
    assert caught.value.found.endswith(": name each once")
    with pytest.raises(InputError) as caught:
        make_config(Distinct, {"names": ("a", "a")}, "cellray.thing")
    assert (caught.value.subject, caught.value.fix) == ("cellray.thing", "See help(cellray.thing).")
    assert caught.value.found == "names ('a', 'a'): name each once"
