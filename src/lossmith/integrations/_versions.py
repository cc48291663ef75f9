"""Which versions of a framework an integration was tested with; another one is refused in one sentence."""

from importlib import metadata

from lossmith.errors import ConfigurationError, MissingExtraError


def require_version(package: str, low: str, high: str, *, extra: str) -> None:
    """Check that `low <= version of package < high`.

    Args:
        package: Name as on the package index.
        low: First version that is supported.
        high: First version that is not.
        extra: The extra of lossmith that installs it.

    Raises:
        MissingExtraError: If the package is not installed.
        ConfigurationError: If its version lies outside the range.
    """
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError(
            f"`{package}` is needed for this integration and is not installed: pip install 'lossmith[{extra}]'."
        ) from error
    # packaging comes with every framework that is asked for here, but not with lossmith's core.
    from packaging.specifiers import SpecifierSet

    # A pre-release of `high` is not below it here; a pre-release of a version between the two is one of them.
    if not SpecifierSet(f">={low},<{high}").contains(found, prereleases=True):
        raise ConfigurationError(
            f"`{package}` must be >= {low} and < {high} for this integration, got {found}: "
            f"pip install '{package}>={low},<{high}'."
        )
