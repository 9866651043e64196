"""The corruptions of ImageNet-C by name; settings need the names, not torch."""

from __future__ import annotations

from hf_dr.errors import ConfigError, did_you_mean

CORRUPTION_NAMES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""In the order of the paper (Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261)."""
SEVERITIES = (1, 2, 3, 4, 5)


def check_corruption(name: str, severity: int) -> None:
    """Refuses unknown names and severities.

    Raises:
        ConfigError: There is no such corruption or severity.
    """
    if name not in CORRUPTION_NAMES:
        raise ConfigError(f"no corruption is called `{name}`.{did_you_mean(name, CORRUPTION_NAMES)}")
    if severity not in SEVERITIES:
        raise ConfigError(f"the severity of a corruption must be a whole number from 1 to 5, got {severity!r}.")
