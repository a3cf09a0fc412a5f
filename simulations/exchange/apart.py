"""A model's other forms, made in a process apart: `python -P -m simulations.exchange.apart`.

A coordinator starts it for a run that is completed (server/archive/forms.py): to read images as a hospital does,
against which a bundle is held, it has no library itself. Both pipes carry one frame (common/wire/frames.py): in come
`model.json` and `model.safetensors`, out go what is said of each form, and the files. This process holds no key. It
writes beneath TMPDIR alone, and never the model; it has no network, leaves no core file and dies with who started it.
"""

import json
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

from common.system import sandbox

NICENESS = 10  # a federation's rounds come first


def main() -> None:
    """See the module."""
    questions, answers = sandbox.take_pipe()
    sandbox.die_with_parent()
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sandbox.remove_network()
    sandbox.lock([Path(tempfile.gettempdir())])
    from common.learning.checkpoint import MANIFEST_NAME, WEIGHTS_NAME, Manifest  # noqa: PLC0415 - after the locks
    from common.wire.frames import Frame, receive_frame, send_frame  # noqa: PLC0415 - after the locks

    asked = receive_frame(questions)
    if asked is None:
        return
    values: dict[str, Any] = json.loads(bytes(asked.parts[MANIFEST_NAME]))
    manifest = Manifest(**{**values, "sites": tuple(values["sites"])})
    try:
        from simulations.exchange.forms import forms_of  # noqa: PLC0415 - torch, and libraries of an extra
    except ImportError as error:
        reason = f"packages are not here ({error.name}). Install them: pip install 'wardround[exchange]'."
        told: dict[str, Any] = {name: {"left-out": reason} for name in ("monai-bundle", "onnx")}
        files: dict[str, bytes] = {}
    else:
        told, files = forms_of(bytes(asked.parts[WEIGHTS_NAME]), manifest)
    send_frame(answers, Frame({"forms": told}, files))


if __name__ == "__main__":
    main()
