"""Implements a hook that does not exist."""

from persona_lab.api import hookimpl


@hookimpl
def persona_lab_stratagems():
    return []
