"""Nothing is skipped where CI has the real images: neither a test nor a file that skips itself as it is read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

FILES = {
    "a test by its mark": "import pytest\n@pytest.mark.skip(reason='why')\ndef test_one(): pass\n",
    "a test as it runs": "import pytest\ndef test_one(): pytest.skip('why')\n",
    "a file without its library": "import pytest\npytest.importorskip('no_such_library', reason='why')\n",
    "no values to test": "import pytest\n@pytest.mark.parametrize('one', [])\ndef test_one(one): pass\n",
    "an expected failure": "import pytest\n@pytest.mark.xfail(reason='why')\ndef test_one(): assert False\n",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_skip_fails_in_ci_and_nowhere_else(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "test_skipping.py"
    path.write_text(FILES[kind] + "def test_that_passes(): pass\n")

    def said(variables: dict[str, str]) -> tuple[int, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("CI", "WARDROUND_DATA")}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", str(path)]
        options = ["--rootdir", str(tmp_path), "-c", os.devnull]
        done = subprocess.run(
            [*command, *options], cwd=ROOT, env=kept | variables, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout

    code, text = said({"CI": "true", "WARDROUND_DATA": str(tmp_path)})
    assert code != 0
    assert "is skipped in CI" in text
    assert "why" in text or kind == "no values to test"
    assert said({"CI": "true"})[0] in (0, pytest.ExitCode.NO_TESTS_COLLECTED)
    assert said({"WARDROUND_DATA": str(tmp_path)})[0] in (0, pytest.ExitCode.NO_TESTS_COLLECTED)
