"""Read weights that somebody pickled, in a process apart: `python -m simulations.exchange.pickled FILE`, to stdout.

A pickle may run code. torch's reader with weights_only=True takes tensors and plain containers alone; and where it
should be deceived, this process has no network, writes nowhere and dies with its parent. Out come safetensors, or
nothing and a reason on stderr.
"""

import sys

from common.system import sandbox

# Under these names programs keep the weights beside other things (MONAI's CheckpointSaver, nnU-Net, Lightning).
_HOLDERS = ("state_dict", "model", "network_weights", "network", "net")


def main() -> None:
    """See the module."""
    path = sys.argv[1]
    _, answers = sandbox.take_pipe()
    sandbox.die_with_parent()
    sandbox.remove_network()
    sandbox.lock([])
    import safetensors.torch  # noqa: PLC0415 - after the locks
    import torch  # noqa: PLC0415 - after the locks

    found = torch.load(path, map_location="cpu", weights_only=True)
    while isinstance(found, dict) and (
        holder := next((one for one in _HOLDERS if isinstance(found.get(one), dict)), None)
    ):
        found = found[holder]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise SystemExit("it holds something else than named tensors")
    kept = {str(name): tensor.detach().clone().contiguous() for name, tensor in found.items()}
    with open(answers, "wb") as pipe:  # noqa: PTH123  # a descriptor
        pipe.write(safetensors.torch.save(kept))


if __name__ == "__main__":
    main()
