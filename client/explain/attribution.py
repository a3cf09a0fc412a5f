"""The one place that wraps captum, which an installation may lack."""

from collections.abc import Callable

from torch import Tensor

from common.errors import ConfigError


def integrated_gradients(
    score: Callable[[Tensor], Tensor], image: Tensor, baseline: Tensor, *, steps: int, at_once: int
) -> Tensor:
    """The gradient of a score on the straight way from a baseline to an image, integrated, times the way.

    Args:
        score: (N, C, *sp) to (N,).
        image: (1, C, *sp).
        baseline: likewise.
        steps: points of the Gauss-Legendre rule.
        at_once: of them, in a pass.

    Returns:
        (1, C, *sp), whose sum is the score of the image less that of the baseline, as far as the rule is exact.

    Raises:
        ConfigError: captum is not installed.
    """
    try:
        from captum.attr import IntegratedGradients  # noqa: PLC0415 - an extra, and heavy
    except ImportError as error:
        raise ConfigError(
            "integrated-gradients needs captum, which is not installed. Type: pip install 'wardround[explain]'. "
            "The other methods do without."
        ) from error
    found = IntegratedGradients(score).attribute(image, baseline, n_steps=steps, internal_batch_size=at_once)
    assert isinstance(found, Tensor)  # noqa: S101  # one tensor for one tensor
    return found.detach()


__all__ = ["integrated_gradients"]
