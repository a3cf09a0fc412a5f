"""Make the plain manifests from the chart, or see whether they are still what it makes.

    python -m deploy.kubernetes.render [--helm HELM] [--check]

`coordinator.yaml` and `site.yaml` are the chart with `coordinator-values.yaml` and `site-values.yaml`, for those who do
not use Helm. With --check nothing is written, and the exit code is 1 where they differ. Helm 3 or 4.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common.system.environment import for_child

HERE = Path(__file__).resolve().parent
SIDES = ("coordinator", "site")
RELEASE = "wardround"


def rendered(helm: str, side: str) -> str:
    """What the chart makes for one side."""
    command = [helm, "template", RELEASE, str(HERE / "chart"), "--values", str(HERE / f"{side}-values.yaml")]
    made = subprocess.run(command, capture_output=True, text=True, check=True, env=for_child()).stdout
    return f"# Made from the chart by deploy/kubernetes/render.py: change {side}-values.yaml, not this file.\n{made}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both, or compare them."""
    parser = argparse.ArgumentParser(prog="python -m deploy.kubernetes.render", description="Make plain manifests.")
    parser.add_argument("--helm", default="helm", help="the program [default: %(default)s]")
    parser.add_argument("--check", action="store_true", help="write nothing, and say what differs")
    options = parser.parse_args(arguments)
    differ = []
    for side in SIDES:
        path = HERE / f"{side}.yaml"
        try:
            text = rendered(options.helm, side)
        except FileNotFoundError:
            sys.stderr.write(f"{options.helm} is not there. Install Helm, or name it with --helm.\n")
            return 1
        except subprocess.CalledProcessError as error:
            sys.stderr.write(error.stderr)
            return 1
        if options.check:
            differ += [path.name] if path.read_text(encoding="utf-8") != text else []
        else:
            path.write_text(text, encoding="utf-8")
    if differ:
        sys.stderr.write(f"not what the chart makes: {', '.join(differ)}. Make them anew without --check.\n")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
