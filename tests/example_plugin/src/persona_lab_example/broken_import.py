"""Fails to import."""

import a_library_that_nobody_has_installed  # noqa: F401
