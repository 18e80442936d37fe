"""Launchers are run the way ClickHouse runs them: by the kernel, from another folder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from clickhouse_clip.installer.render import launcher
from clickhouse_clip.udf.errors import InstallError

MISSING = Path('/nowhere/it\'s "here" \\n/settings.json')


def interpreter_at(path: Path) -> Path:
    """An interpreter at `path` that stands for Python in a virtual environment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


def run(script: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script, "encode_text"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], **environment},
        timeout=60,
        check=False,
    )


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    "name",
    ["plain", "with space", "it's", "a 'quoted' $HOME `pwd`", "ü/" + 3 * ("long" * 16 + "/")],
)
def test_starts_with_any_interpreter_path(tmp_path: Path, name: str) -> None:
    interpreter = interpreter_at(tmp_path / name / "bin" / "python3")
    text = launcher("encode_text.py", interpreter, MISSING)
    # The main loop's place is taken by a look at what it would be given.
    text = text.replace("sys.exit(main(", "sys.exit(print(sys.flags.isolated, ")
    result = run(write(tmp_path / "encode_text.py", text))
    assert result.stderr == ""
    assert result.stdout == f"1 {MISSING} ['encode_text']\n"


def test_short_paths_need_no_shell(tmp_path: Path) -> None:
    text = launcher("encode_text.py", Path("/opt/clip/bin/python3"), tmp_path)
    assert text.startswith("#!/opt/clip/bin/python3 -I\n")


@pytest.mark.parametrize(("length", "shell"), [(127, False), (128, True)])
def test_a_shebang_has_127_bytes_at_most(length: int, shell: bool) -> None:
    interpreter = "/" + "p" * (length - len("#!/ -I"))
    first, _ = launcher("encode_text.py", Path(interpreter), MISSING).split("\n", 1)
    assert (first == "#!/bin/sh") is shell
    assert len(first) <= 127


def test_environment_of_the_caller_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "clickhouse_clip.py").write_text("raise SystemExit('hijacked')")
    text = launcher("encode_text.py", Path(sys.executable), MISSING)
    script = write(tmp_path / "encode_text.py", text.replace("main(", "print("))
    result = run(script, PYTHONPATH=str(tmp_path), PYTHONHOME="/nowhere", PYTHONVERBOSE="1")
    assert result.stderr == ""
    assert str(MISSING) in result.stdout


def test_says_what_to_do_when_the_package_is_gone(tmp_path: Path) -> None:
    text = launcher("encode_text.py", Path(sys.executable), MISSING)
    result = run(write(tmp_path / "x.py", text.replace("clickhouse_clip.udf", "clickhouse_gone")))
    assert result.returncode == 1
    assert result.stdout == ""
    assert "No module named 'clickhouse_gone'" in result.stderr
    assert "run install-udfs" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_interpreter_path_that_no_form_can_hold_is_refused() -> None:
    with pytest.raises(InstallError, match="another folder"):
        launcher("encode_text.py", Path("/opt/back\\slash and space/python"), MISSING)
