"""List of the software components of this installation, as CycloneDX: what is installed beside the coordinator.

Source: ECMA-424, CycloneDX 1.6. Written by the library that its makers keep.
"""

import importlib.metadata
from collections.abc import Collection, Iterator
from typing import Any

NAME = "sbom.cdx.json"
EXTRA = "pip install 'wardround[evidence]'"


def components(only: Collection[str] | None = None) -> str | None:
    """The list as JSON; None where the library is not installed.

    Args:
        only: names of those to list, in lower case with hyphens; all without it.
    """
    try:
        from cyclonedx.model.bom import Bom  # noqa: PLC0415 - an extra
        from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415 - an extra
        from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415 - an extra
        from packageurl import PackageURL  # noqa: PLC0415 - an extra
    except ImportError:
        return None

    def component(name: str, version: str, kind: Any) -> Any:
        url = PackageURL("pypi", None, name, version)
        return Component(name=name, version=version, type=kind, purl=url, bom_ref=str(url))

    installed = dict(_installed())
    bom: Any = Bom()
    bom.metadata.component = component("wardround", installed.pop("wardround"), ComponentType.APPLICATION)
    for name, version in sorted(installed.items()):
        if only is not None and name not in only:
            continue
        bom.components.add(component(name, version, ComponentType.LIBRARY))
    bom.register_dependency(bom.metadata.component, list(bom.components))
    return f"{JsonV1Dot6(bom).output_as_string(indent=2)}\n"


def _installed() -> Iterator[tuple[str, str]]:
    for one in importlib.metadata.distributions():
        if name := one.metadata["Name"]:
            yield name.lower().replace("_", "-"), one.version


__all__ = ["EXTRA", "NAME", "components"]
